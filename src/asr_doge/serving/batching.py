"""Chunks that wait for the model, and which of them go through it together.

Promises: how long a chunk may wait for later ones depends on its kind; those of a batch are of like length. It does not
know threads or models.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal

from asr_doge.audio.resampling import SAMPLE_RATE
from asr_doge.decoding.recognition import Recognition
from asr_doge.inference.chunking import Chunk

LIKE_LENGTH = 2.0
"""Chunks in one batch differ in length by this factor at most, or are all shorter than `SHORT_SECONDS`."""
SHORT_SECONDS = 2.0
Kind = Literal["ended", "open", "file"]
"""Of a chunk: live speech that has ended, live speech that goes on, or a part of a file."""
PATIENCE: dict[Kind, float] = {"ended": 0.0, "open": 0.5, "file": 1.0}
"""Seconds by which a chunk may wait for others that came later."""


@dataclass(eq=False)
class Job:
    """A chunk in the queue."""

    chunk: Chunk
    language: str | None
    hotwords: tuple[str, ...] | None
    kind: Kind = "file"
    came: float = field(default_factory=time.monotonic)
    result: "Future[Recognition]" = field(default_factory=Future)

    @property
    def seconds(self) -> float:
        """Of its audio."""
        return len(self.chunk.samples) / SAMPLE_RATE

    @property
    def due(self) -> float:
        """When those that come later have to wait for it, by the monotonic clock."""
        return self.came + PATIENCE[self.kind]

    @property
    def is_urgent(self) -> bool:
        """Whether somebody waits for the text of what was said."""
        return self.kind == "ended"


def alike(jobs: Sequence[Job], batch_seconds: float, most: int) -> list[Job]:
    """The first job, and of the others those nearest in length, as many as fit."""
    first, *others = jobs
    batch, longest, shortest = [first], first.seconds, first.seconds
    for job in sorted(others, key=lambda job: abs(job.seconds - first.seconds)):
        high, low = max(longest, job.seconds), min(shortest, job.seconds)
        is_alike = high <= max(SHORT_SECONDS, LIKE_LENGTH * low)
        if is_alike and len(batch) < most and high * (len(batch) + 1) <= batch_seconds:
            batch.append(job)
            longest, shortest = high, low
    return batch
