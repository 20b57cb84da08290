"""Small feature caches to be filled by tests."""

import multiprocessing
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from asr_doge.data.feature_cache import FeatureCache
from asr_doge.data.feature_cache_writer import FeatureCacheWriter
from asr_doge.data.feature_shards import Features

SOURCE: dict[str, str | int | None] = {"encoder": "nano", "fingerprint": "ab12", "front_end": 1, "revision": None}


def features(number: float, length: int = 3) -> Tensor:
    return torch.full((length, 4), float(number))


def add(
    writer: FeatureCacheWriter, wanted: Iterable[tuple[str, str, Tensor]], unreadable: dict[str, str] | None = None
) -> None:
    """Put utterances into the files that they belong in, as `asr-doge features` does."""
    wanted = list(wanted)
    for number in range(writer.num_shards):
        mine = [item for item in wanted if writer.shard_of(item[0]) == number]
        marks = {id_: reason for id_, reason in (unreadable or {}).items() if writer.shard_of(id_) == number}
        with writer.shard(number) as shard:
            for id_, stamp, tensor in mine:
                shard.add(id_, stamp, [Features(tensor)])
            for id_, reason in marks.items():
                shard.mark_unreadable(id_, reason)


def fill(folder: Path | str, ids: Iterable[object], stamp: str = "1-1", num_shards: int = 4) -> None:
    with FeatureCacheWriter(folder, SOURCE, num_shards=num_shards) as writer:
        add(writer, ((str(id_), stamp, features(number)) for number, id_ in enumerate(ids)))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("features-*")}


def read_in_child(cache: FeatureCache, queue: "multiprocessing.Queue[float]") -> None:
    """In a process of its own, which must import this module."""
    queue.put(cache["1"].sum().item())
