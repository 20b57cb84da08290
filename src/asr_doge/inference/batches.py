"""Divide items into batches of similar length and work on them, on several at a time where the device can.

Promises: every batch comes back once, in the order in which they were begun, with its results, or raises what its work
raised; few are begun ahead. Who leaves early waits for nothing, until the process ends: a batch at work is finished. An
only batch has all of torch's threads.
It does not know what the items are.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Generic, TypeVar

import torch

from asr_doge.inference.model_threads import start_model_threads

Item = TypeVar("Item")
Result = TypeVar("Result")

PARALLEL = 2
"""Batches that a CPU works on at a time: two on a core each take less time than one after the other on both, since
searches and small layers cannot be divided."""


def batches_at_a_time(device: torch.device) -> int:
    """How many batches a model on this device should work on at a time."""
    return min(PARALLEL, torch.get_num_threads()) if device.type == "cpu" else 1


class Batches(Generic[Item, Result]):
    """Batches on their way through a model; a context manager.

    Args:
        work: gives the results of a batch.
        length: of an item.
        size: items of a batch.
        parallel: batches at a time; with 1 the caller's thread does the work.
    """

    def __init__(
        self, work: Callable[[Sequence[Item]], list[Result]], length: Callable[[Item], int], size: int, parallel: int
    ) -> None:
        self._work = work
        self._length = length
        self._size = size
        self._parallel = parallel
        self._jobs: SimpleQueue[tuple[list[Item], Future[list[Result]]] | None] = SimpleQueue()
        self._begun: deque[tuple[list[Item], Future[list[Result]]]] = deque()
        self._has_threads = False

    def __enter__(self) -> "Batches[Item, Result]":
        return self

    def __exit__(self, *error: object) -> None:
        for _, results in self._begun:
            results.cancel()
        for _ in range(self._parallel):
            self._jobs.put(None)

    def submit(self, items: Sequence[Item]) -> Iterator[tuple[list[Item], list[Result]]]:
        """Begin all items, longest first; yield batches that are done, while the last may still be at work."""
        ordered = sorted(items, key=lambda item: -self._length(item))
        is_only = len(ordered) <= self._size and not self._begun
        for start in range(0, len(ordered), self._size):
            batch = ordered[start : start + self._size]
            if self._parallel == 1 or is_only:
                yield batch, self._work(batch)
                continue
            if len(self._begun) == 2 * self._parallel:  # the first may take long while others end
                yield self._first()
            self._begin(batch)

    def drain(self) -> Iterator[tuple[list[Item], list[Result]]]:
        """Yield the batches that `submit` left at work."""
        while self._begun:
            yield self._first()

    def _begin(self, batch: list[Item]) -> None:
        if not self._has_threads:
            start_model_threads(self._parallel, self._run, partial(self._jobs.put, None), "batches")
            self._has_threads = True
        job: tuple[list[Item], Future[list[Result]]] = (batch, Future())
        self._begun.append(job)
        self._jobs.put(job)

    def _run(self) -> None:
        while job := self._jobs.get():
            batch, results = job
            if not results.set_running_or_notify_cancel():
                continue
            try:
                results.set_result(self._work(batch))
            except BaseException as error:  # of whatever kind, it is the caller's
                results.set_exception(error)

    def _first(self) -> tuple[list[Item], list[Result]]:
        batch, results = self._begun.popleft()
        return batch, results.result()
