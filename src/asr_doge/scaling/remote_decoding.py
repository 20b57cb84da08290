"""Recordings decoded on other nodes of a Ray cluster than the model's, in actors that each worker has of its own.

Promises: samples, notes and errors are those of `ItemReader`. A decode worker that dies, or cannot open a recording,
costs it no attempt: the worker decodes it by itself, from where the other ended, at most `decoders` recordings at once.
No recording waits for a decode worker, so a cluster without room for any makes a job slower only. They give samples in
pieces, each when it is asked for: one whose reader is slow or leaves goes on with the next recording as ever, and
memory does not grow with a recording's length. They end with the worker that has them. Ray retries nothing.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

from asr_doge.audio.resampling import SAMPLE_RATE
from asr_doge.audio.sound import Note
from asr_doge.data.stores import is_url
from asr_doge.errors import AudioError
from asr_doge.scaling.configuration import TranscribeJobConfig
from asr_doge.scaling.item_reading import ItemReader, Samples, each_once, item_reader, open_item, skip_samples
from asr_doge.scaling.items import Item
from asr_doge.scaling.ray_engine import check_version

MOST_REPLACED = 3
"""Decode workers that a worker hires in the place of dead ones."""
_PIECE_SECONDS = 30
_LOOK_SECONDS = 1.0


@dataclass
class Piece:
    """Some of an item.

    Attributes:
        blocks: of samples at 16 kHz.
        notes: on the recording.
        error: with which it ends, if any.
        goes_on: whether there is more.
        is_open: whether the recording could be opened.
    """

    blocks: list[Samples] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: AudioError | None = None
    goes_on: bool = False
    is_open: bool = True


class DecodeWorker:
    """Decodes items, one at a time, for the worker that has it.

    Args:
        config: of the command.
        folder: working directory.
    """

    def __init__(self, config: TranscribeJobConfig, folder: str) -> None:
        self._reader = item_reader(replace(config, decode_workers=0))
        self._folder, self._has_folder = folder, False
        self._file: BinaryIO | None = None
        self._blocks: Iterator[Samples] = iter(())
        self._notes: list[str] = []

    def arrive(self) -> tuple[str, str]:
        """Take its place; returns the name of its node, and the version of this package there."""
        with suppress(OSError):
            os.chdir(self._folder)
            self._has_folder = True
        return socket.gethostname(), version("asr-doge")

    def take(self, item: Item | None) -> Piece:
        """The first piece of an item, or, without one, the next of the last item."""
        if item is not None:
            if self._file is not None:
                self._file.close()
            self._file = self._opened(item)
            if self._file is None:
                return Piece(is_open=False)
            self._blocks = self._reader.decoded(self._file, item, self._notes.append, threading.Event())
        piece, length = Piece(), 0
        try:
            for block in self._blocks:
                piece.blocks.append(block)
                length += len(block)
                if length >= _PIECE_SECONDS * SAMPLE_RATE:
                    piece.goes_on = True
                    break
        except AudioError as error:
            piece.error = error
        piece.notes = self._notes.copy()
        self._notes.clear()
        return piece

    def _opened(self, item: Item) -> BinaryIO | None:
        """An item's recording; None where another machine may have it, or be let in."""
        if not (self._has_folder or is_url(item.url) or Path(item.url).is_absolute()):
            return None  # what is at this path elsewhere is another
        try:
            return open_item(item)
        except AudioError:
            return None


class RemoteReader(ItemReader):
    """Reads items through decode workers, as many as arrive.

    Args:
        config: of the command; Ray must be connected to.
        settings: of an `ItemReader`.
    """

    def __init__(self, config: TranscribeJobConfig, *settings: Any) -> None:
        import ray

        super().__init__(*settings)
        self._config, self._ray = config, ray
        self._local = threading.Semaphore(config.decoders)
        self._workers = DecodeWorkers(ray, config)

    def start(self) -> str | None:
        """Wait for the decode workers."""
        count = self._workers.wait()
        self._at_once = count or self._config.decoders
        if count == self._config.decode_workers:
            return None
        return (
            f"{count} of {self._config.decode_workers} decode workers of a worker found a core in"
            f" {self._config.wait_for_workers:g} s"
            + ("" if count else f": it decodes {self._config.decoders} recordings at once by itself")
        )

    def close(self) -> None:
        """See `ItemReader.close`."""
        self._workers.close()
        super().close()

    def blocks(self, item: Item, on_note: Note, cancelled: threading.Event) -> Iterator[Samples]:
        """See `ItemReader.blocks`."""
        on_note = each_once(on_note)
        given = 0
        worker = self._workers.acquire()
        if worker is not None:
            try:
                for piece in self._pieces(worker, item, cancelled):
                    for note in piece.notes:
                        on_note(note)
                    for block in piece.blocks:
                        given += len(block)
                        yield block
                    if piece.error is not None:
                        raise piece.error
                    if piece.is_open and not piece.goes_on:
                        return
            except self._ray.exceptions.RayTaskError:  # a defect, which shows here too
                pass
            except self._ray.exceptions.RayError:
                self._workers.replace(worker)
                worker = None
            finally:
                if worker is not None:
                    self._workers.release(worker)
        if not cancelled.is_set():
            yield from self._decoded_here(skip_samples(given, super().blocks(item, on_note, cancelled)))

    def _pieces(self, worker: Any, item: Item, cancelled: threading.Event) -> Iterator[Piece]:
        """An item's pieces; while one is read, the next is decoded.

        Raises:
            RayError: the decode worker is gone.
        """
        asked = worker.take.remote(item)
        while asked is not None and not cancelled.is_set():
            if self._ray.wait([asked], timeout=_LOOK_SECONDS)[0]:
                piece: Piece = self._ray.get(asked)
                asked = worker.take.remote(None) if piece.goes_on else None
                yield piece

    def _decoded_here(self, blocks: Iterator[Samples]) -> Iterator[Samples]:
        """Blocks of which each is decoded while few others are.

        A place is held for a block and not for a recording, which may wait for its reader to have read one before it.
        """
        while True:
            with self._local:
                block = next(blocks, None)
            if block is None:
                return
            yield block


class DecodeWorkers:
    """The decode workers of a worker.

    Args:
        ray: the module.
        config: of the command.
    """

    def __init__(self, ray: Any, config: TranscribeJobConfig) -> None:
        self._ray, self._config = ray, config
        # No more than one core each, wherever one is free.
        self._actor = ray.remote(DecodeWorker).options(num_cpus=1, max_restarts=0, max_task_retries=0)
        self._lock = threading.Lock()
        self._free: list[Any] = []
        self._coming: dict[Any, tuple[Any, float]] = {}  # by what it answers when it has arrived; and until when
        self._replaced = 0
        for _ in range(config.decode_workers):
            self._hire()

    def wait(self) -> int:
        """Wait until all have arrived, or as long as for workers; returns how many have."""
        while self._coming:
            with self._lock:
                self._look(_LOOK_SECONDS)
        return len(self._free)

    def acquire(self) -> Any | None:
        """A free actor, if any."""
        with self._lock:
            self._look(0.0)
            return self._free.pop() if self._free else None

    def release(self, actor: Any) -> None:
        """Make an actor free again."""
        with self._lock:
            self._free.append(actor)

    def replace(self, actor: Any) -> None:
        """Hire another in the place of one that is gone, unless that was often."""
        with self._lock:
            self._replace(actor)

    def close(self) -> None:
        """End those that are not at work."""
        for actor in (*self._free, *(actor for actor, _ in self._coming.values())):
            self._end(actor)

    def _hire(self) -> None:
        actor = self._actor.remote(self._config, str(Path.cwd()))
        self._coming[actor.arrive.remote()] = actor, time.monotonic() + self._config.wait_for_workers

    def _look(self, seconds: float) -> None:
        """See who has arrived, and give those up that have not in time.

        Raises:
            ConfigError: one has another version of this package.
        """
        if not self._coming:
            return
        for ref in self._ray.wait(list(self._coming), num_returns=len(self._coming), timeout=seconds)[0]:
            actor, _ = self._coming.pop(ref)
            try:
                node, there = self._ray.get(ref)
            except self._ray.exceptions.RayError:
                self._replace(actor)
                continue
            check_version(node, there)
            self._free.append(actor)
        for ref, (actor, until) in list(self._coming.items()):
            if time.monotonic() > until:  # else it would take a core from a worker that is hired later
                del self._coming[ref]
                self._end(actor)

    def _replace(self, actor: Any) -> None:
        self._end(actor)
        if self._replaced < MOST_REPLACED:
            self._replaced += 1
            self._hire()

    def _end(self, actor: Any) -> None:
        with suppress(Exception):  # it may be gone, and its node with it
            self._ray.kill(actor)
