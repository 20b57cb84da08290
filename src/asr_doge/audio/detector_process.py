"""Detect speech of long recordings in another process, while the model runs in this one.

Promises: `LongRecordingDetector` gives the flags of a `VoiceActivityDetector`, bit for bit. The detector's library
holds Python's lock while it works, so in a thread it would stop the model. After `MOVE_SECONDS` of a recording, a
detector process takes over, and afterwards waits for the next recording. Shorter recordings are detected in this
process, unless a detector process is waiting, since starting one takes longer. All are detected here if there is one
processor only, or no process can be started. If the detector process is killed, or this process is forked, a new
detector continues here with the next frame: the recording is not lost, but some flags may differ.
It does not know what the flags are for.
"""

import os
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from asr_doge.audio.resampling import SAMPLE_RATE
from asr_doge.audio.voice_activity import FRAME_SAMPLES, VoiceActivityDetector

MODULE = "asr_doge.audio.detector_process"
"""This module; `__name__` is `__main__` in the detector process."""
MOVE_SECONDS = 120.0
"""Seconds of a recording after which a process is started."""
MOST_WAITING = 1
"""Processes that wait for another recording, at most; each takes 45 MB."""
_COUNT = struct.Struct("<I")
"""Samples of a request, or flags of a reply. A request of none begins a new recording."""
_NONE = np.zeros(0, dtype=np.float32)


class LongRecordingDetector:
    """Detects speech in one recording from its start; samples are at 16 kHz.

    A context manager: its end releases the detector process for another recording.
    """

    def __init__(self) -> None:
        self._here: VoiceActivityDetector | None = None
        self._so_far: list[NDArray[np.float32]] | None = [] if _can_start() else None
        """All of the recording, until it moves or cannot."""
        self._incomplete = _NONE
        """The last samples, which complete no frame yet."""
        self._process: _DetectorProcess | None = None

    def __enter__(self) -> "LongRecordingDetector":
        self._process = _DetectorProcess.acquire()
        if self._process is None:
            self._here = VoiceActivityDetector()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.release()

    def feed(self, samples: NDArray[np.float32]) -> list[bool]:
        """Whether each frame completed by these `[samples]` may be speech."""
        held = np.concatenate([self._incomplete, samples])
        self._incomplete = held[len(held) // FRAME_SAMPLES * FRAME_SAMPLES :].copy()
        if self._process is not None:
            try:
                return self._process.feed(samples)
            except (EOFError, OSError):
                self._process.end()
                self._process, self._here, samples = None, VoiceActivityDetector(), held
        assert self._here is not None, "it is used as a context"
        flags = self._here.feed(samples)
        if self._so_far is not None:
            self._so_far.append(samples)
            if sum(map(len, self._so_far)) >= MOVE_SECONDS * SAMPLE_RATE:
                self._move(self._so_far)
                self._so_far = None
        return flags

    def _move(self, so_far: list[NDArray[np.float32]]) -> None:
        """Feed the recording so far to a process, and go on there; if there can be none, go on here."""
        with suppress(EOFError, OSError):
            process = _DetectorProcess()
            try:
                for samples in so_far:  # not in one piece, of which there would be three copies
                    process.feed(samples)
            except (EOFError, OSError):
                process.end()
                raise
            self._process = process


class _DetectorProcess:
    """A process that runs `main`; it ends when this process does."""

    waiting: "list[_DetectorProcess]" = []

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._is_answering = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE],
            # Python looks for modules there first: not in the folder of somebody's recordings.
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # where it fails, its work is done here
            start_new_session=True,  # Ctrl-C is the affair of the process that reads the flags
        )

    @classmethod
    def acquire(cls) -> "_DetectorProcess | None":
        """A waiting process, ready for a new recording; None if there is none."""
        with suppress(IndexError):  # other threads take some too
            while True:
                process = cls.waiting.pop()
                try:
                    process.feed(_NONE)
                except (EOFError, OSError):
                    process.end()
                else:
                    return process
        return None

    def release(self) -> None:
        """Let it wait for another recording, or end it if enough processes wait."""
        if self._is_answering or len(self.waiting) >= MOST_WAITING:
            self.end()
        else:
            self.waiting.append(self)

    def feed(self, samples: NDArray[np.float32]) -> list[bool]:
        """`VoiceActivityDetector.feed`; an empty block begins a recording.

        Raises:
            EOFError, OSError: it was killed, or belongs to the process that this one was forked from.
        """
        if os.getpid() != self._owner:
            raise EOFError
        self._is_answering = True
        to, back = cast(BinaryIO, self._process.stdin), cast(BinaryIO, self._process.stdout)
        to.write(_COUNT.pack(len(samples)) + samples.astype("<f4").tobytes())
        to.flush()
        flags = _read(back, *_COUNT.unpack(_read(back, _COUNT.size)))
        self._is_answering = False
        return [flag != 0 for flag in flags]

    def end(self) -> None:
        """Stop it, unless it is another process's."""
        if os.getpid() == self._owner:
            self._process.kill()
            with suppress(OSError):  # what was written last may not have arrived
                self._process.communicate()


def _can_start() -> bool:
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return processors > 1 and bool(sys.executable)


def _read(pipe: BinaryIO, count: int) -> bytes:
    """Read `count` bytes; an EOFError if there are fewer."""
    taken = pipe.read(count)
    if len(taken) < count:
        raise EOFError
    return taken


def main() -> None:
    """Answer requests until nobody asks or listens any more."""
    detector = VoiceActivityDetector()
    with suppress(EOFError, BrokenPipeError):
        while True:
            (count,) = _COUNT.unpack(_read(sys.stdin.buffer, _COUNT.size))
            if count == 0:
                detector = VoiceActivityDetector()
            flags = detector.feed(np.frombuffer(_read(sys.stdin.buffer, 4 * count), dtype="<f4"))
            os.write(sys.stdout.fileno(), _COUNT.pack(len(flags)) + bytes(flags))


if __name__ == "__main__":
    main()
