"""The recordings in one file: each is a range of bytes that is a file of its own.

`chunked_formats` and `packet_formats` find the `Part`s of a file; `open_part` gives a decoder the bytes of one part
only.
"""

import io
import mmap
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Data = mmap.mmap | bytes
"""The bytes of a whole file."""


@dataclass(frozen=True)
class Part:
    """A recording within a file.

    Attributes:
        start, end: the range of its bytes.
        fault: how it is truncated or damaged, as in `it breaks off within a page`; None if no fault is known.
        stated: bytes of samples that the header states, divided by those present; 1 unless some are missing.
        seconds: duration that its header states; None if it states none, or only a decoder's library reads it.
        container: FFmpeg's name of its format, if FFmpeg must read it; None to detect it.
    """

    start: int
    end: int
    fault: str | None = None
    stated: float = 1.0
    seconds: float | None = None
    container: str | None = None


def split(data: Data, start: re.Pattern[bytes], walk: Callable[[Data, int], Part]) -> list[Part]:
    """Consecutive parts: `walk` finds the one that starts at a place, where `start` matches."""
    parts = [walk(data, 0)]
    while parts[-1].end < len(data) and start.match(data, parts[-1].end):
        parts.append(walk(data, parts[-1].end))
    return [*parts[:-1], replace(parts[-1], end=len(data))]


def open_part(path: Path, part: Part) -> io.BufferedReader:
    """The bytes of a part, as a seekable file."""
    return io.BufferedReader(_Slice(path, part.start, part.end))


class _Slice(io.RawIOBase):
    """Bytes from `start` to `end` of a file."""

    def __init__(self, path: Path, start: int, end: int) -> None:
        self._file = path.open("rb", buffering=0)
        self._start, self._length, self._place = start, end - start, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._length}[whence]
        self._place = max(origin + offset, 0)
        return self._place

    def readinto(self, buffer: "WriteableBuffer") -> int:
        room = memoryview(buffer)
        wanted = min(len(room), max(self._length - self._place, 0))
        self._file.seek(self._start + self._place)
        count = self._file.readinto(room[:wanted]) or 0
        self._place += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
