"""A worker without a model: its text is the number of samples that it read, which arithmetic knows too.

A recording with `away` in its name cannot be fetched the first time. One with `kills` ends its worker's process, as the
system does for want of memory; one with `bloats` asks for more memory than there is; `raises` stands for a defect in a
stage; `waits` does not end before there is a file `go` beside it, and leaves its process's number in a file of its own
name. What was read is noted in a file beside the recordings, and lines are stored as soon as they are there.
"""

import math
import os
import resource
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from asr_doge.audio.resampling import SAMPLE_RATE
from asr_doge.errors import AudioError
from asr_doge.inference.output import Result
from asr_doge.inference.results import FailedTranscription, Transcription
from asr_doge.scaling.items import FetchError, Item
from asr_doge.scaling.shard_worker import ShardWorker


class CountingWorker(ShardWorker):
    storing_share = math.inf

    def results(self, items: Sequence[Item]) -> Iterator[Result]:
        for item, reading in zip(items, self.read_ahead(items), strict=True):
            try:
                count = sum(len(block) for block in reading.blocks(lambda note: None))
            except AudioError as error:
                yield FailedTranscription(error)
                continue
            path = Path(item.url)
            if path.parent.is_dir():  # not a store
                with (path.parent / "read.log").open("a", errors="surrogateescape") as log:
                    log.write(f"{path.name}\n")
            if "away" in path.stem and not path.with_suffix(".seen").exists():
                path.with_suffix(".seen").touch()
                yield FailedTranscription(FetchError(f"{path.name} is away."))
                continue
            _model(path)
            yield Transcription(f"{count} samples", count / SAMPLE_RATE)


class FarDecodingWorker(CountingWorker):
    """Opens no recording by itself."""

    def start(self) -> str | None:
        note = super().start()

        def refuse(item: Item) -> None:
            raise AudioError(f"{item.name} was not decoded by a decode worker.")

        setattr(self._reader, "_opened", refuse)  # noqa: B010 - mypy sees a method
        return note


class SlowlyLoadingWorker(CountingWorker):
    """Waits for `go` beside the recordings before it is ready, and leaves its process's number meanwhile."""

    def start(self) -> str | None:
        folder = Path(self.config.files[0])
        (folder / f"{os.getpid()}.pid").write_text(str(os.getpid()))
        while not (folder / "go").exists():
            time.sleep(0.05)
        return super().start()


def _model(path: Path) -> None:
    name = path.stem
    if "waits" in name:
        path.with_suffix(".pid").write_text(str(os.getpid()))
        while not (path.parent / "go").exists():
            time.sleep(0.05)
    if "kills" in name:
        os.kill(os.getpid(), signal.SIGKILL)
    if "bloats" in name:
        limits = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (1 << 40, limits[1]))
        try:
            np.zeros(1 << 45, dtype=np.uint8)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)
    if "raises" in name:
        raise RuntimeError("a defect in a stage")
