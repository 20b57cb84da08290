"""The recording of an item as blocks of samples: fetched, decoded in a process of its own, and cut to its part.

Promises: a recording that crashes, hangs or bloats its decoder costs itself alone, after `attempts` tries in a new
process each; its samples are those that `read_blocks` gives of the same bytes. Recordings are decoded ahead of their
reader, each up to about a minute of audio, so that memory does not grow with their length or number.
"""

import errno
import os
import queue
import socket
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, BinaryIO, cast
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from asr_doge.audio.file_decoding import DecoderDiedError, FileDecoder
from asr_doge.audio.resampling import SAMPLE_RATE
from asr_doge.audio.sound import Note
from asr_doge.data.stores import http_status, is_url, is_web, one_line
from asr_doge.errors import ASRDogeError, AudioError, DataError
from asr_doge.scaling.configuration import TranscribeJobConfig
from asr_doge.scaling.items import DeniedError, FetchError, Item, open_bytes, path_of, true_error
from asr_doge.scaling.parquet_rows import parquet_rows

_PAUSE_SECONDS = 1.0
"""Between two attempts to fetch a recording; the second pause is twice as long, and so on."""
_QUEUED_BLOCKS = 16
"""Blocks of some seconds that are decoded ahead of a recording's reader."""
_COPIED_BYTES = 1 << 20
_LASTING = frozenset([errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG])
"""Errors of a local file that are its own."""
_CHANNELS: dict[str, int | None] = {"mix": None, "left": 0, "right": 1}

Samples = NDArray[np.float32]


class ItemReader:
    """Reads the recordings of items, several ahead.

    Args:
        decoders: recordings that are decoded at once.
        attempts: tries before a recording is given up.
        memory: bytes that decoding one may take.
        channel: to read, from 0; None for the mean of all.
    """

    def __init__(self, decoders: int, attempts: int, memory: int, channel: int | None) -> None:
        self._attempts, self._channel = attempts, channel
        self._at_once = decoders
        self._decoder = FileDecoder(memory)

    def start(self) -> str | None:
        """Prepare; returns a note for the user, if any."""
        return None

    def close(self) -> None:
        """End the fork server that decodes."""
        self._decoder.close()

    def read_ahead(self, items: Sequence[Item]) -> Iterator["Reading"]:
        """Recordings in order; each must be read, or skipped, before the next is requested."""
        waiting = iter(items)
        ahead: deque[Reading] = deque()
        with ThreadPoolExecutor(self._at_once) as threads:
            try:
                while True:
                    for item in waiting:
                        ahead.append(Reading(item))
                        threads.submit(ahead[-1].fill, self)
                        if len(ahead) > self._at_once:
                            break
                    if not ahead:
                        return
                    reading = ahead.popleft()
                    try:
                        yield reading
                    finally:
                        reading.cancelled.set()
            finally:
                for reading in ahead:
                    reading.cancelled.set()

    def blocks(self, item: Item, on_note: Note, cancelled: threading.Event) -> Iterator[Samples]:
        """The samples of an item, at 16 kHz.

        Raises:
            AudioError: its recording cannot be fetched or read, or is given up, or ends before its part begins.
        """
        with self._opened(item) as file:
            yield from self.decoded(file, item, on_note, cancelled)

    def decoded(self, file: BinaryIO, item: Item, on_note: Note, cancelled: threading.Event) -> Iterator[Samples]:
        """The samples of an item whose recording is open; errors as of `blocks`, but for fetching it."""
        return samples_of_item(self._whole(file, item.name, each_once(on_note), cancelled), item)

    def _whole(self, file: BinaryIO, name: str, on_note: Note, cancelled: threading.Event) -> Iterator[Samples]:
        """The samples of a recording, decoded in as many attempts as it may take."""
        given = 0
        for attempt in range(1, self._attempts + 1):
            file.seek(0)  # which the decoder may share
            try:
                for block in skip_samples(given, self._decoder.blocks(file, name, cancelled, on_note, self._channel)):
                    given += len(block)
                    yield block
                return
            except DecoderDiedError as error:
                if attempt == self._attempts:
                    raise AudioError(f"{error} Given up after attempt {attempt}.") from None

    def _opened(self, item: Item) -> BinaryIO:
        """The item's recording, fetched in as many attempts as it may be decoded in."""
        for attempt in range(1, self._attempts):
            try:
                return open_item(item)
            except FetchError:  # a store may answer a moment later
                time.sleep(attempt * _PAUSE_SECONDS)
        return open_item(item)


def item_reader(config: TranscribeJobConfig) -> ItemReader:
    """The reader for these settings."""
    memory = config.decode_memory_mb * 1_000_000
    settings = config.decoders, config.max_attempts, memory, _CHANNELS[config.channels]
    if config.decode_workers:
        from asr_doge.scaling.remote_decoding import RemoteReader  # here, since Ray is an extra

        return RemoteReader(config, *settings)
    return ItemReader(*settings)


def each_once(on_note: Note) -> Note:
    """Passes on each note the first time only, since attempts repeat them."""
    notes = set()

    def note_once(note: str) -> None:
        if note not in notes:
            notes.add(note)
            on_note(note)

    return note_once


def skip_samples(samples: int, blocks: Iterator[Samples]) -> Iterator[Samples]:
    """The blocks without their first `samples` samples, which an earlier attempt gave."""
    for block in blocks:
        new = block[samples:]
        samples -= min(samples, len(block))
        if len(new):
            yield new


class Reading:
    """A recording on its way from a decoder to its reader.

    Attributes:
        name: what to call it.
        cancelled: set when its reader no longer wants it.
    """

    def __init__(self, item: Item) -> None:
        self._item = item
        self.name = item.name
        self.cancelled = threading.Event()
        self._queue: queue.Queue[Samples | str | ASRDogeError | None] = queue.Queue(_QUEUED_BLOCKS)

    def fill(self, reader: ItemReader) -> None:
        """Decode, in a thread."""
        try:
            for block in reader.blocks(self._item, self._note, self.cancelled):
                if not self._put(block):
                    return
            self._put(None)
        except ASRDogeError as error:
            self._put(error)
        except Exception as error:  # a thread's defect is the recording's reader's to report
            self._put(AudioError(f"{self.name} cannot be read ({type(error).__name__}: {one_line(error)})."))

    def blocks(self, on_note: Note) -> Iterator[Samples]:
        """The samples of the item, as they are decoded."""
        while (thing := self._queue.get()) is not None:
            if isinstance(thing, str):
                on_note(thing)
            elif isinstance(thing, ASRDogeError):
                raise thing
            else:
                yield thing

    def _note(self, note: str) -> None:
        self._put(note)

    def _put(self, thing: Samples | str | ASRDogeError | None) -> bool:
        """Hand something to the reader; False if it was cancelled."""
        while not self.cancelled.is_set():
            try:
                self._queue.put(thing, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False


def samples_of_item(blocks: Iterator[Samples], item: Item) -> Iterator[Samples]:
    """The samples of an item, in blocks, from those of its whole recording.

    Raises:
        AudioError: the recording ends before the part begins.
    """
    if not item.is_part:
        yield from blocks
        return
    start = round(item.offset * SAMPLE_RATE)
    stop = None if item.duration is None else start + round(item.duration * SAMPLE_RATE)
    position = 0
    for block in blocks:
        part = block[max(start - position, 0) : None if stop is None else max(stop - position, 0)]
        position += len(block)
        if len(part):
            yield part
        if stop is not None and position >= stop:
            return
    if position <= start:
        raise AudioError(
            f"{item.name} is {position / SAMPLE_RATE:.1f} s long, and its part would begin at {item.offset:g} s: "
            "correct the manifest."
        )


def open_item(item: Item) -> BinaryIO:
    """The bytes of an item's recording as an open file on disk.

    Raises:
        FetchError: the file system or the store fails, a package is missing here, or so is a file that was listed.
        DeniedError: a store does not let us in.
        AudioError: they cannot be had.
    """
    try:
        if not item.member and not is_url(item.url):
            if Path(item.url).is_fifo():  # opening it would wait for a writer
                raise AudioError(f"{item.name} is a pipe: give a file.")
            return Path(item.url).open("rb")
        content = _parquet_bytes(item) if path_of(item.url).lower().endswith(".parquet") else None
        copy = tempfile.TemporaryFile(prefix="asr-doge-")  # noqa: SIM115 - the caller closes it
        if content is not None:
            copy.write(content)
        else:
            _copy_range(item, copy)
        copy.flush()
        copy.seek(0)
        return cast(BinaryIO, copy)
    except AudioError:
        raise
    except Exception as error:  # each cloud's client has its own errors
        raise _failure(item, true_error(item.url, error)) from None


def _failure(item: Item, error: Exception) -> AudioError:
    """The error for a recording that cannot be opened."""
    if isinstance(error, FileNotFoundError):
        if is_url(item.url) or item.stamp in ("", "missing"):
            return AudioError(f"{item.name} does not exist: check the path.")
        return FetchError(
            f"{item.name} was listed and is not on {socket.gethostname()}: share its folder among the machines."
        )
    reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error).rstrip(".")
    line = f"{item.name} cannot be opened: {reason}"
    if not _is_transient(item, error):
        return AudioError(f"{line}.")
    if is_url(item.url) and (isinstance(error, PermissionError) or http_status(error) in (401, 403)):
        return DeniedError(f"{line}: check your credentials.")
    return FetchError(f"{line}.")


def _is_transient(item: Item, error: Exception) -> bool:
    """Whether an error is the store's or this machine's, and not the recording's."""
    if isinstance(error, ValueError) and path_of(item.url).lower().endswith(".parquet"):  # a damaged one
        return False
    if isinstance(error, DataError) or is_url(item.url):  # a package that is missing here, for one
        return True
    return isinstance(error, OSError) and error.errno is not None and error.errno not in _LASTING


def _copy_range(item: Item, copy: IO[bytes]) -> None:
    """Copy the item's bytes, or all if it is the file."""
    try:
        with open_bytes(item.url, is_whole=not item.member) as file:
            if item.start:
                file.seek(item.start)
            _copy(file, copy, item.size if item.member else None)
    except ValueError:
        if not (item.member and is_web(item.url)):
            raise
        copy.seek(0)  # the server gives out whole files only
        copy.truncate()
        with open_bytes(item.url, is_whole=True) as file:
            left = item.start
            while left > 0 and (skipped := file.read(min(left, _COPIED_BYTES))):
                left -= len(skipped)
            _copy(file, copy, item.size)


def _copy(file: BinaryIO, copy: IO[bytes], left: int | None) -> None:
    """Copy `left` bytes, or all."""
    while left is None or left > 0:
        block = file.read(_COPIED_BYTES if left is None else min(left, _COPIED_BYTES))
        if not block:
            break
        copy.write(block)
        left = None if left is None else left - len(block)


def store_of(item: Item) -> tuple[str, str]:
    """Protocol and server (or bucket), which share credentials; empty for a local file."""
    parts = urlsplit(item.url)
    return (parts.scheme, parts.netloc) if is_url(item.url) else ("", "")


def can_fetch(item: Item) -> bool:
    """Whether the first bytes of an item's file can be had now."""
    try:
        with open_bytes(item.url, is_whole=True) as file:
            file.read(1)
        return True
    except Exception:  # each cloud's client has its own errors
        return False


def _parquet_bytes(item: Item) -> bytes:
    """The bytes in a row's `audio`, or of the file that it names."""
    audio = parquet_rows(item.url, item.stamp).row(int(item.member))
    if audio.get("bytes"):
        return bytes(audio["bytes"])
    path = audio.get("path")
    if not path:
        raise AudioError(f"{item.name} has neither bytes nor a path in its column audio.")
    folder = os.path.dirname(path_of(item.url))  # noqa: PTH120 - of a URL too
    with open_item(Item(path if is_url(path) or path.startswith("/") else f"{folder}/{path}")) as file:
        return file.read()
