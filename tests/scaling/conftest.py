"""Recordings of known lengths, good and bad, and the settings of a job over them."""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from asr_doge.audio import file_decoding
from asr_doge.scaling import engines, item_reading
from asr_doge.scaling.configuration import TranscribeJobConfig
from tests.nursery import nursery, start_at
from tests.scaling.fragile.sitecustomize import CRASHES, DECODER, DECODERS, HANGS

FRAGILE = Path(__file__).parent / "fragile"
MEMORY = 80_000_000
"""Bytes of a node's object store, the least that Ray takes."""


@pytest.fixture(autouse=True, scope="package")
def fragile_decoders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoders crash and hang on what says so, here and on a cluster."""
    with (
        pytest.MonkeyPatch.context() as patch,
        nursery(DECODER, tmp_path_factory.mktemp("decoders"), python_path()) as address,
    ):
        patch.setenv("PYTHONPATH", python_path())
        patch.setenv(DECODERS, address)
        patch.setattr(file_decoding, "_started", start_at(address, DECODER))
        yield


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one core each, connected to."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # for a busy machine: its default of 15 starves workers there
        head = {"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def share_decoders() -> None:
    """In a process that a test starts."""
    file_decoding._started = start_at(os.environ[DECODERS], DECODER)


def python_path() -> str:
    """Modules that processes of a test find: what breaks decoders, this package, and these tests."""
    root = Path(__file__).parents[2]
    return os.pathsep.join([str(FRAGILE), str(root / "src"), str(root)])


def samples(number: int) -> int:
    """Length of a recording; no two are alike."""
    return 4000 + 37 * number


def write_recordings(folder: Path, count: int, **bad: int) -> Path:
    """Recordings `000.wav` and on; `kills=3` puts one that kills its worker in the third place, and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    places = {place: kind for kind, place in bad.items()}
    for number in range(count):
        kind = places.get(number, "")
        path = folder / f"{number:03}{kind}.wav"
        if kind in ("crashes", "hangs"):
            path.write_bytes(CRASHES if kind == "crashes" else HANGS)
        else:
            soundfile.write(path, np.full(samples(number), 0.1, dtype=np.float32), 16_000)
    return folder


def job(folder: Path, output: Path, **settings: object) -> TranscribeJobConfig:
    """Settings of a job in shards of four."""
    defaults: dict[str, object] = {"engine": "local", "shard_size": 4, "max_attempts": 2, "decoders": 1}
    return TranscribeJobConfig(files=[str(folder)], output_dir=str(output), **defaults | settings)  # type: ignore[arg-type]  # checked by the job


def lines(output: Path) -> list[dict[str, object]]:
    """All lines of all complete shards, in order."""
    shards = [path for path in sorted(output.glob("*.jsonl")) if path.with_suffix(".done.json").exists()]
    return [json.loads(line) for path in shards for line in path.read_text().splitlines()]


def read_again(folder: Path) -> list[str]:
    """Names of the recordings that were read more than once."""
    counts = Counter((folder / "read.log").read_text(errors="surrogateescape").split())
    return sorted(name for name, count in counts.items() if count > 1)


def check_complete(folder: Path, output: Path, **bad: str) -> None:
    """Nothing is lost, nothing is there twice, and each bad recording is named with its reason."""
    found = lines(output)
    paths = sorted(folder.glob("*.wav"))
    assert [line["path"] for line in found] == [str(path) for path in paths]
    for number, (path, line) in enumerate(zip(paths, found, strict=True)):
        kind = path.stem[3:]
        if kind in bad:
            assert path.name in str(line["error"])
            assert bad[kind] in str(line["error"])
        else:
            assert line["text"] == f"{samples(number)} samples"
    summary = json.loads((output / "summary.json").read_text())
    assert summary["transcribed"] == len(paths) - len(bad)
    assert sorted(Path(name).stem[3:] for name, _ in summary["failed"]) == sorted(bad)


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a store or a worker to come back does not wait."""
    monkeypatch.setattr(engines, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(item_reading, "_PAUSE_SECONDS", 0.0)
