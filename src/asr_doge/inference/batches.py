"""Divide items into batches of similar length and run them through a model, several at a time where the device can.

Promises: every batch comes back once, in the order in which the batches were started, with its results or the error of
its work; few are started ahead. A caller that stops early does not wait for batches at work, which only the end of the
process waits for. A batch that runs by itself has all of torch's threads.
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


class BatchRunner(Generic[Item, Result]):
    """Runs batches of items, in threads if there are several at a time; a context manager.

    Args:
        work: gives the results of a batch.
        length: gives the length of an item.
        size: items in a batch.
        parallel: batches at a time; with 1 they run in the caller's thread.
    """

    def __init__(
        self, work: Callable[[Sequence[Item]], list[Result]], length: Callable[[Item], int], size: int, parallel: int
    ) -> None:
        self._work = work
        self._length = length
        self._size = size
        self._parallel = parallel
        self._queue: SimpleQueue[tuple[list[Item], Future[list[Result]]] | None] = SimpleQueue()
        self._started: deque[tuple[list[Item], Future[list[Result]]]] = deque()
        self._has_threads = False

    def __enter__(self) -> "BatchRunner[Item, Result]":
        return self

    def __exit__(self, *error: object) -> None:
        for _, results in self._started:
            results.cancel()
        for _ in range(self._parallel):
            self._queue.put(None)

    def submit(self, items: Sequence[Item]) -> Iterator[tuple[list[Item], list[Result]]]:
        """Start all items, longest first; yield batches that are done. The last may still be at work afterwards."""
        ordered = sorted(items, key=lambda item: -self._length(item))
        is_only = len(ordered) <= self._size and not self._started
        for start in range(0, len(ordered), self._size):
            batch = ordered[start : start + self._size]
            if self._parallel == 1 or is_only:
                yield batch, self._work(batch)
                continue
            if len(self._started) == 2 * self._parallel:  # the first may take long while others end
                yield self._first()
            self._start(batch)

    def drain(self) -> Iterator[tuple[list[Item], list[Result]]]:
        """Yield the batches that `submit` left at work."""
        while self._started:
            yield self._first()

    def _start(self, batch: list[Item]) -> None:
        if not self._has_threads:
            start_model_threads(self._parallel, self._run, partial(self._queue.put, None), "batches")
            self._has_threads = True
        entry: tuple[list[Item], Future[list[Result]]] = (batch, Future())
        self._started.append(entry)
        self._queue.put(entry)

    def _run(self) -> None:
        while entry := self._queue.get():
            batch, results = entry
            if not results.set_running_or_notify_cancel():
                continue
            try:
                results.set_result(self._work(batch))
            except BaseException as error:  # of any kind: the caller gets it
                results.set_exception(error)

    def _first(self) -> tuple[list[Item], list[Result]]:
        batch, results = self._started.popleft()
        return batch, results.result()
