"""Decoding apart from the model: what a decode worker does, and how a worker with a model has it done.

Promises: samples are those that the worker would have decoded by itself. Whatever a decode worker cannot give, since it
died or its machine lacks the recording, the worker decodes by itself, from where the other ended, so that decode
workers make a job faster and nothing else. They give samples in pieces, each when it is asked for, and never wait for
a reader: memory does not grow with a recording's length, and no two can block each other. It knows no engine.
"""

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from asr_doge.audio.resampling import SAMPLE_RATE
from asr_doge.audio.sound import Note
from asr_doge.errors import AudioError
from asr_doge.scaling.configuration import TranscribeJobConfig
from asr_doge.scaling.items import FetchError, Item
from asr_doge.scaling.opening import ItemReader, Samples

_PIECE_SECONDS = 30
_IDLE_SECONDS = 600.0
"""Time without a question after which a recording is closed: whoever read it is gone, or decodes it by itself."""


@dataclass
class Piece:
    """Some of a recording.

    Attributes:
        blocks: of samples at 16 kHz.
        notes: on the recording.
        error: with which it ends, if any.
        is_last: whether this is its end.
    """

    blocks: list[Samples] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: AudioError | None = None
    is_last: bool = False


class DecodeWorker:
    """Decodes recordings for others.

    Args:
        reader: of recordings.
    """

    def __init__(self, reader: ItemReader) -> None:
        self._reader = reader
        self._open: dict[str, tuple[Iterator[Samples], Piece, float]] = {}

    def take(self, key: str, item: Item | None) -> Piece:
        """The next piece of a recording.

        Args:
            key: of the recording, which only its reader uses.
            item: the recording, for its first piece; then None.

        Raises:
            KeyError: it is not open.
        """
        self._close_idle()
        piece = Piece()
        if item is not None:
            blocks = self._reader.part(item, lambda note: self._open_notes(key).append(note), threading.Event())
        else:
            blocks = self._open.pop(key)[0]
        self._open[key] = blocks, piece, time.monotonic()
        try:
            while sum(map(len, piece.blocks)) < _PIECE_SECONDS * SAMPLE_RATE:
                piece.blocks.append(next(blocks))
            return piece
        except StopIteration:
            piece.is_last = True
        except AudioError as error:
            piece.is_last, piece.error = True, error
        del self._open[key]
        return piece

    def _open_notes(self, key: str) -> list[str]:
        return self._open[key][1].notes

    def _close_idle(self) -> None:
        for key, (blocks, _, used) in list(self._open.items()):
            if time.monotonic() - used > _IDLE_SECONDS:
                del self._open[key]
                blocks.close()  # type: ignore[attr-defined]  # a generator


Take = Callable[[str, Item | None], Piece]
"""`DecodeWorker.take`, wherever it is; raises anything if that one is gone."""


class SharedReader(ItemReader):
    """Reads recordings through decode workers, while it has any.

    Attributes:
        decode_workers: those it may ask; removed when they fail.
    """

    def __init__(self, decoders: int, attempts: int, memory: int, channel: int | None) -> None:
        super().__init__(decoders, attempts, memory, channel)
        self._lock = threading.Lock()
        self._busy: Counter[Take] = Counter()
        self.decode_workers: list[Take] = []

    def use(self, decode_workers: Sequence[Take]) -> None:
        """Ask these from now on."""
        with self._lock:
            self.decode_workers = list(decode_workers)

    @property
    def ahead(self) -> int:
        """See `ItemReader.ahead`; two for each decode worker, so that it has the next one when one is done."""
        return max(super().ahead, 2 * len(self.decode_workers))

    def part(self, item: Item, on_note: Note, has_left: threading.Event) -> Iterator[Samples]:
        """See `ItemReader.part`."""
        given = 0
        take = self._reserve()
        if take is not None:
            try:
                for block in _taken(take, item, on_note, has_left):
                    given += len(block)
                    yield block
                return
            except FetchError:  # this machine may be let in
                pass
            except AudioError:
                raise
            except Exception:  # it is gone, in whatever way the engine tells it
                with self._lock, suppress(ValueError):
                    self.decode_workers.remove(take)
            finally:
                with self._lock:
                    self._busy[take] -= 1
        for block in super().part(item, on_note, has_left):
            new = block[given:]
            given -= len(block) - len(new)
            if len(new):
                yield new

    def _reserve(self) -> Take | None:
        """The decode worker with the least to do for this reader."""
        with self._lock:
            if not self.decode_workers:
                return None
            take = min(self.decode_workers, key=lambda one: self._busy[one])
            self._busy[take] += 1
            return take


_CHANNELS: dict[str, int | None] = {"mix": None, "left": 0, "right": 1}


def item_reader(config: TranscribeJobConfig) -> SharedReader:
    """A reader as the settings want it."""
    memory = config.decode_memory_mb * 1_000_000
    return SharedReader(config.decoders, config.max_attempts, memory, _CHANNELS[config.channels])


def decode_worker(config: TranscribeJobConfig) -> DecodeWorker:
    """A decode worker as the settings want it."""
    return DecodeWorker(item_reader(config))


def _taken(take: Take, item: Item, on_note: Note, has_left: threading.Event) -> Iterator[Samples]:
    """A recording's samples, piece by piece.

    Raises:
        AudioError: as the decode worker found it.
        Exception: it is gone.
    """
    key = uuid.uuid4().hex
    asked: Item | None = item
    while not has_left.is_set():
        piece = take(key, asked)
        asked = None
        for note in piece.notes:
            on_note(note)
        yield from piece.blocks
        if piece.error is not None:
            raise piece.error
        if piece.is_last:
            return
