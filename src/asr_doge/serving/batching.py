"""Pending chunks, and which of them the model recognizes in one batch.

Promises: how long a chunk may wait for later ones depends on its kind; the chunks of a batch are of similar length. It
knows neither threads nor models.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal

from asr_doge.audio.resampling import SAMPLE_RATE
from asr_doge.decoding.recognition import Recognition
from asr_doge.inference.chunking import Chunk

MOST_LENGTH_RATIO = 2.0
"""Chunks in one batch differ in length by this factor at most, or are all shorter than `SHORT_SECONDS`."""
SHORT_SECONDS = 2.0
Kind = Literal["ended", "open", "file"]
"""The origin of a chunk: live speech that has ended, live speech that continues, or a file."""
QUEUE_SECONDS: dict[Kind, float] = {"ended": 0.0, "open": 0.5, "file": 1.0}
"""Seconds that a chunk of each kind may wait while later chunks go first."""


@dataclass(eq=False)
class PendingChunk:
    """A chunk that waits for the model, and the future of its recognition."""

    chunk: Chunk
    language: str | None
    hotwords: tuple[str, ...] | None
    kind: Kind = "file"
    arrived: float = field(default_factory=time.monotonic)
    result: "Future[Recognition]" = field(default_factory=Future)

    @property
    def seconds(self) -> float:
        """Length of its audio."""
        return len(self.chunk.samples) / SAMPLE_RATE

    @property
    def due(self) -> float:
        """The time, by the monotonic clock, from which later chunks no longer go before it."""
        return self.arrived + QUEUE_SECONDS[self.kind]

    @property
    def is_urgent(self) -> bool:
        """Whether a client waits for the final text of live speech."""
        return self.kind == "ended"


def choose_batch(waiting: Sequence[PendingChunk], batch_seconds: float, most: int) -> list[PendingChunk]:
    """The first chunk and, of the others, those nearest to it in length, as many as fit."""
    first, *others = waiting
    batch, longest, shortest = [first], first.seconds, first.seconds
    for pending in sorted(others, key=lambda pending: abs(pending.seconds - first.seconds)):
        high, low = max(longest, pending.seconds), min(shortest, pending.seconds)
        is_alike = high <= max(SHORT_SECONDS, MOST_LENGTH_RATIO * low)
        if is_alike and len(batch) < most and high * (len(batch) + 1) <= batch_seconds:
            batch.append(pending)
            longest, shortest = high, low
    return batch
