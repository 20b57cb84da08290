"""The record of a run, `run.json`: settings, data, machine, versions and results.

Promises: written before the first step and completed at the end, and copied into each checkpoint in its state at that
time; the fingerprint of a manifest depends on its ids, texts and durations, and not on the place of its files.
"""

import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from asr_doge.data.atomic_writing import write_atomically
from asr_doge.data.manifest import Utterance
from asr_doge.errors import DataError

RECORD_NAME = "run.json"
_PACKAGES = ("asr-doge", "torch", "transformers", "accelerate", "peft")


def describe_data(splits: Mapping[str, Sequence[Utterance]]) -> dict[str, Any]:
    """Number, seconds and fingerprint of the utterances of each split."""
    return {
        name: {
            "utterances": len(utterances),
            "seconds": round(sum(utterance.duration for utterance in utterances), 3),
            "fingerprint": _fingerprint(utterances),
        }
        for name, utterances in splits.items()
    }


def describe_machine(device: torch.device, processes: int) -> dict[str, Any]:
    """The machine of a run, and the versions of its libraries."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": processes,
        "threads": torch.get_num_threads(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _PACKAGES},
        "git_commit": _git_commit(),
    }


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of the run in a folder, if there is one.

    Raises:
        DataError: it cannot be read.
    """
    path = folder / RECORD_NAME
    if not path.is_file():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: restore it, or remove it to resume without comparing") from error
    return record


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write `run.json`; a date is added.

    Raises:
        DataError: the folder cannot be written to.
    """
    dated = {"version": 1, **record, "written": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    write_atomically(folder / RECORD_NAME, json.dumps(dated, indent=2, ensure_ascii=False).encode())


def _fingerprint(utterances: Sequence[Utterance]) -> str:
    digest = hashlib.sha256()
    for utterance in utterances:
        digest.update(json.dumps([utterance.id, utterance.text, utterance.duration, utterance.language]).encode())
    return digest.hexdigest()[:16]


def _git_commit() -> str | None:
    """The commit of this package's source, with `-dirty` if it was changed since; None if it was installed."""
    tracked = _git("ls-files", "--error-unmatch", Path(__file__).name)  # an environment may be in another's checkout
    return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") if tracked else None


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return finished.stdout.strip()
