"""Recognize queued chunks in batches of similar length, several batches at a time where the model can.

Promises: every batch comes back once, in the order in which they were begun, with what the recognizer gave for it, or
raises what it raised; at most as many batches are at work or waiting to be taken as may run at a time. Each has its
share of torch's threads.
It does not know recordings, or what a recognition is.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from asr_doge.decoding.recognition import Recognition
from asr_doge.inference.recordings import QueuedChunk

PARALLEL = 2
"""Batches that a CPU works on at a time: two on a core each take less time than one after the other on both, since
searches and small layers cannot be divided."""

Recognized = tuple[list[QueuedChunk], list[Recognition]]
"""A batch and the recognition of each of its chunks."""


def batches_at_a_time(device: torch.device) -> int:
    """How many batches a model on this device should work on at a time."""
    return min(PARALLEL, torch.get_num_threads()) if device.type == "cpu" else 1


class Batches:
    """Batches on their way through a recognizer; a context manager.

    Args:
        recognize: one batch.
        size: chunks of a batch.
        parallel: batches at a time; with 1 the caller's thread does the work.
    """

    def __init__(
        self, recognize: Callable[[Sequence[QueuedChunk]], list[Recognition]], size: int, parallel: int
    ) -> None:
        self._recognize = recognize
        self._size = size
        self._parallel = parallel
        self._running: deque[tuple[list[QueuedChunk], Future[list[Recognition]]]] = deque()
        self._threads: ThreadPoolExecutor | None = None
        if parallel > 1:
            share = max(1, torch.get_num_threads() // parallel)
            # In each of the threads, for which alone the number holds.
            self._threads = ThreadPoolExecutor(parallel, "batch", torch.set_num_threads, (share,))

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *error: object) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def through(self, chunks: Sequence[QueuedChunk]) -> Iterator[Recognized]:
        """Begin all chunks, longest first; yield the batches that are done, while the last may still be at work."""
        by_length = sorted(chunks, key=lambda queued: -len(queued[2].samples))
        for start in range(0, len(by_length), self._size):
            batch = by_length[start : start + self._size]
            if self._threads is None:
                yield batch, self._recognize(batch)
                continue
            if len(self._running) == self._parallel:
                yield self._first()
            self._running.append((batch, self._threads.submit(self._recognize, batch)))

    def rest(self) -> Iterator[Recognized]:
        """Yield the batches that `through` left at work."""
        while self._running:
            yield self._first()

    def _first(self) -> Recognized:
        batch, recognitions = self._running.popleft()
        return batch, recognitions.result()
