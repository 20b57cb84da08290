"""Decode workers on a Ray cluster: as many as are asked for, where workers leave a core free.

Promises: workers come before decode workers. These are hired only while the fewest workers have their places and cores
are left free, and dismissed when they have not for some seconds, so a cluster that is too small for both, or becomes
so, has none and loses nothing. One that dies is replaced in the same way. Ray restarts and retries nothing.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from asr_doge.scaling.decode_workers import DecodeWorker, Piece
from asr_doge.scaling.items import Item

_SETTLED_SECONDS = 5.0
"""Time since a worker last found or lost its place, in which others may find theirs."""
_STARTING_SECONDS = 20.0
"""Time in which a worker finds its place if a core is free for it."""


class RemoteDecodeWorker:
    """A decode worker in a process of the cluster.

    Args:
        make: makes it.
        folder: working directory; None for any.
    """

    def __init__(self, make: Callable[[], DecodeWorker], folder: str | None) -> None:
        if folder is not None:
            os.chdir(folder)
        self._worker = make()

    def is_there(self) -> bool:
        """True, once it has a place."""
        return True

    def take(self, key: str, item: Item | None) -> Piece:
        """See `DecodeWorker.take`."""
        return self._worker.take(key, item)


class DecodePool:
    """The decode workers of a job.

    Args:
        ray: the module.
        make: makes one, on the node where it is to work.
        most: their number.
        folder: their working directory; None for any.
    """

    def __init__(self, ray: Any, make: Callable[[], DecodeWorker], most: int, folder: str | None) -> None:
        self._ray, self._make, self._most, self._folder = ray, make, most, folder
        self._actor = ray.remote(RemoteDecodeWorker).options(num_cpus=1, max_restarts=0, max_task_retries=0)
        self._signs: dict[Any, Any] = {}  # an unanswered question whether it is there, and whom it was asked
        self._there: list[Any] = []
        self._turn = 0
        self._placed, self._since = 0, 0.0

    def adjust(self, placed: int, enough: int) -> None:
        """Hire some, or dismiss one; see which have died.

        Args:
            placed: workers that have a place.
            enough: of which so many come before any decode worker.
        """
        if placed != self._placed:
            self._placed, self._since = placed, time.monotonic()
        self._look()
        unchanged = time.monotonic() - self._since
        if placed < enough and unchanged > _STARTING_SECONDS:
            self._since = time.monotonic()  # so that a worker may now find its place before another is dismissed
            for sign, actor in list(self._signs.items())[-1:]:
                del self._signs[sign]
                self._dismiss(actor)
        elif placed >= enough and unchanged > _SETTLED_SECONDS:
            coming = len(self._signs) - len(self._there)
            cores = int(self._ray.available_resources().get("CPU", 0.0))
            for _ in range(min(self._most - len(self._signs), cores - coming)):
                actor = self._actor.remote(self._make, self._folder)
                self._signs[actor.is_there.remote()] = actor

    def _look(self) -> None:
        if not self._signs:
            return
        for sign in self._ray.wait(list(self._signs), num_returns=len(self._signs), timeout=0)[0]:
            actor = self._signs.pop(sign)
            try:
                self._ray.get(sign)
            except self._ray.exceptions.RayError:
                self._dismiss(actor)
                continue
            if actor not in self._there:
                self._there.append(actor)
            self._signs[actor.is_there.remote()] = actor

    def share(self, workers: int) -> list[Any]:
        """Those that one of so many workers is to ask for its next task."""
        count = -(-len(self._there) // max(workers, 1))
        self._turn += count
        return [self._there[(self._turn + number) % len(self._there)] for number in range(count)]

    def dismiss(self) -> None:
        """End all."""
        for actor in self._signs.values():
            self._dismiss(actor)
        self._signs.clear()

    def _dismiss(self, actor: Any) -> None:
        with suppress(ValueError):
            self._there.remove(actor)
        with suppress(Exception):  # it may be gone, and its node with it
            self._ray.kill(actor)


class RemoteTake:
    """`DecodeWorker.take` of one on the cluster.

    Args:
        actor: the handle of a `RemoteDecodeWorker`.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __call__(self, key: str, item: Item | None) -> Piece:
        """See `DecodeWorker.take`."""
        import ray

        piece: Piece = ray.get(self._actor.take.remote(key, item))
        return piece
