"""Cut recordings into chunks in another process, while the model runs in this one.

Promises: `RecordingCutter` gives the chunks of a `Chunker`, bit for bit. The voice activity detector holds Python's
lock while it works, as does much else that cutting needs, so in a thread it would stop the model. Once `MOVE_SECONDS`
of recordings have arrived, the last of them moves to a process, which afterwards waits for the next. Recordings that
end before are cut in this process at their end, since starting another takes longer. All are cut here if there is one
processor only, or no process can be started. While one block is cut, the next can be read, so chunks come a block later
than they are complete. If the process is killed, or this process is forked, cutting continues here after the last
chunk: nothing of the recording is lost, but some cuts may differ.
It does not know where the recording comes from.
"""

import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from asr_doge.audio.resampling import SAMPLE_RATE
from asr_doge.inference.chunk_header import HEADER_BYTES, pack_header, unpack_header
from asr_doge.inference.chunking import BLOCK_SAMPLES, Chunk, Chunker

MODULE = "asr_doge.inference.cutting_process"
"""This module; `__name__` is `__main__` in the process that cuts."""
MOVE_SECONDS = 120.0
"""Seconds of recordings, one or several, after which a process is started: a start takes as long as cutting them."""
MOST_WAITING = 1
"""Processes that wait for another recording, at most; each takes 60 MB."""
_REQUEST = struct.Struct("<cId")
"""Kind of a request, number of samples that follow, and seconds of the longest chunk."""
_BEGIN, _CONTINUE, _FINISH = b"b", b"c", b"f"
"""A recording begins with the samples, goes on with them, or has ended."""
_READY = b"asr-doge cuts\n"
"""Precedes the first reply. Where something else does, as what a `sitecustomize` prints, replies cannot be read."""
_COUNT = struct.Struct("<I")
"""Chunks in a reply; and samples of each, before its header."""
_NONE = np.zeros(0, dtype=np.float32)


class RecordingCutter:
    """Cuts one recording while it arrives; an `asr_doge.inference.chunking.Cutter`.

    A context manager: its end releases the process for another recording.

    Args:
        max_seconds: longest chunk, in seconds.
    """

    def __init__(self, max_seconds: float) -> None:
        self._max_seconds = max_seconds
        self._held: list[NDArray[np.float32]] = []  # the recording so far, until it is long enough to move
        self._here: Chunker | None = None
        self._process: _CuttingProcess | None = None
        self._open = _NONE  # what the process has and no chunk holds yet
        self._latest: Chunk | None = None  # that the process gave

    def __enter__(self) -> "RecordingCutter":
        if _can_start():
            self._process = _CuttingProcess.acquire()
        else:
            self._here = Chunker(self._max_seconds)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.release()

    def feed(self, samples: NDArray[np.float32]) -> list[Chunk]:
        """Take more `[samples]` at 16 kHz, of any number; returns chunks that they and those before complete."""
        if self._here is not None:
            return self._here.feed(samples)
        # Small blocks, since every cut copies the rest, and since a reply must fit into a pipe that nobody reads yet.
        self._held += [samples[start : start + BLOCK_SAMPLES] for start in range(0, len(samples), BLOCK_SAMPLES)]
        if self._process is None:
            if _CuttingProcess.seconds_without + self._held_seconds() < MOVE_SECONDS:
                return []
            with suppress(OSError):
                self._process = _CuttingProcess()
        return self._cut_held()

    def finish(self) -> list[Chunk]:
        """The remaining chunks."""
        chunks = self._cut_held()
        if self._process is not None:
            try:
                return chunks + self._taken(self._process.finish())
            except (EOFError, OSError):
                chunks += self._cut_here()
        assert self._here is not None
        return chunks + self._here.finish()

    def _cut_held(self) -> list[Chunk]:
        """Cut what is held: in the process, or here if there is none."""
        if self._process is None:
            _CuttingProcess.seconds_without += self._held_seconds()
            return self._cut_here()
        chunks: list[Chunk] = []
        try:
            while self._held:
                samples = self._held.pop(0)
                self._open = np.concatenate([self._open, samples])
                chunks += self._taken(self._process.feed(samples, self._max_seconds))
        except (EOFError, OSError):
            chunks += self._cut_here()
        return chunks

    def _held_seconds(self) -> float:
        return sum(map(len, self._held)) / SAMPLE_RATE

    def _taken(self, replies: Sequence[tuple[int, bytes]]) -> list[Chunk]:
        """The chunks of replies, which are the beginning of the open samples."""
        chunks = []
        for count, header in replies:
            self._latest = unpack_header(header, self._open[:count])
            self._open = self._open[count - round(self._latest.overlap_after * SAMPLE_RATE) :].copy()
            chunks.append(self._latest)
        return chunks

    def _cut_here(self) -> list[Chunk]:
        """Cut here what no chunk holds, and go on without a process."""
        if self._process is not None:
            _CuttingProcess.can_run &= self._process.is_ready
            self._process.end()
        if self._here is None:
            self._here = Chunker(self._max_seconds, self._latest)
        blocks, self._process, self._open, self._held = [self._open, *self._held], None, _NONE, []
        return [chunk for block in blocks for chunk in self._here.feed(block)]


class _CuttingProcess:
    """A process that runs `main`; it ends when this process does."""

    waiting: "list[_CuttingProcess]" = []
    can_run = True
    """False once one has ended without a reply: so would the next."""
    seconds_without = 0.0
    """Of recordings that were cut without one, about: threads may add to it at once."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self.is_ready = False
        self._has_begun = False
        self._unanswered = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE],
            # Python looks for modules there first: not in the folder of somebody's recordings.
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # where it fails, its work is done here
            start_new_session=True,  # Ctrl-C is the affair of the process that reads the chunks
        )

    @classmethod
    def acquire(cls) -> "_CuttingProcess | None":
        """A waiting process, ready for a new recording; None if there is none."""
        with suppress(IndexError):  # other threads take some too
            while True:
                process = cls.waiting.pop()
                if process._owner == os.getpid() and process._process.poll() is None:
                    return process
                process.end()
        return None

    def release(self) -> None:
        """Let it wait for another recording, or end it if enough processes wait."""
        if self._has_begun or len(self.waiting) >= MOST_WAITING:
            self.end()
        else:
            self.waiting.append(self)

    def feed(self, samples: NDArray[np.float32], max_seconds: float) -> list[tuple[int, bytes]]:
        """Samples and header of the chunks that the block before this one completed.

        Args:
            samples: more of the recording.
            max_seconds: longest chunk of the recording.

        Raises:
            EOFError, OSError: it was killed, or belongs to the process that this one was forked from.
        """
        kind = _CONTINUE if self._has_begun else _BEGIN
        self._has_begun = True  # even if an interrupt leaves half a request in the pipe: then nobody uses it again
        self._ask(kind, samples, max_seconds)
        return self._reply() if self._unanswered > 1 else []

    def finish(self) -> list[tuple[int, bytes]]:
        """Those of all that was fed; raises as `feed` does."""
        if not self._has_begun:
            return []
        self._ask(_FINISH, _NONE)
        chunks = [chunk for _ in range(self._unanswered) for chunk in self._reply()]
        self._has_begun = False
        return chunks

    def end(self) -> None:
        """Stop it, unless it is another process's."""
        if os.getpid() == self._owner:
            self._process.kill()
            with suppress(OSError):  # what was written last may not have arrived
                self._process.communicate()

    def _ask(self, kind: bytes, samples: NDArray[np.float32], max_seconds: float = 0.0) -> None:
        if os.getpid() != self._owner:
            raise EOFError
        self._unanswered += 1
        to = cast(BinaryIO, self._process.stdin)
        to.write(_REQUEST.pack(kind, len(samples), max_seconds) + samples.astype("<f4", copy=False).tobytes())
        to.flush()

    def _reply(self) -> list[tuple[int, bytes]]:
        back = cast(BinaryIO, self._process.stdout)
        if not self.is_ready and _read(back, len(_READY)) != _READY:
            raise EOFError
        self.is_ready = True
        (chunks,) = _COUNT.unpack(_read(back, _COUNT.size))
        replies = [(*_COUNT.unpack(_read(back, _COUNT.size)), _read(back, HEADER_BYTES)) for _ in range(chunks)]
        self._unanswered -= 1
        return replies


def _can_start() -> bool:
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Of a frozen application, the executable is the application itself.
    return processors > 1 and bool(sys.executable) and not getattr(sys, "frozen", False) and _CuttingProcess.can_run


def _read(pipe: BinaryIO, count: int) -> bytes:
    """Read `count` bytes; an EOFError if there are fewer."""
    taken = pipe.read(count)
    if len(taken) < count:
        raise EOFError
    return taken


def main() -> None:
    """Answer requests until nobody asks or listens any more."""
    chunker = Chunker()
    with suppress(EOFError, BrokenPipeError):
        os.write(sys.stdout.fileno(), _READY)
        while True:
            kind, count, max_seconds = _REQUEST.unpack(_read(sys.stdin.buffer, _REQUEST.size))
            samples = np.frombuffer(_read(sys.stdin.buffer, 4 * count), dtype="<f4")
            if kind == _BEGIN:
                chunker = Chunker(max_seconds)
            chunks = chunker.finish() if kind == _FINISH else chunker.feed(samples)
            headers = [_COUNT.pack(len(chunk.samples)) + pack_header(chunk) for chunk in chunks]
            os.write(sys.stdout.fileno(), b"".join([_COUNT.pack(len(chunks)), *headers]))


if __name__ == "__main__":
    main()
