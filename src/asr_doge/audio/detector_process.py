"""Detect speech of long recordings in a process of its own, beside the model.

Promises: `LongRecordingDetector` gives the flags of a `VoiceActivityDetector`, bit for bit. The detector's library
holds Python's lock while it works, so in a thread it would stop the model. After `MOVE_SECONDS` of a recording, another
process detects in its place, and is kept for the recordings after it. Shorter recordings stay here, since starting a
process takes longer than they do; so does everything where there is one processor, or no Python to start. A process
that was forked starts its own.
It does not know what the flags are for.
"""

import os
import struct
import subprocess
import sys
from contextlib import suppress
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from asr_doge.audio.resampling import SAMPLE_RATE
from asr_doge.audio.voice_activity import VoiceActivityDetector
from asr_doge.errors import AudioError

MODULE = "asr_doge.audio.detector_process"
"""This one, by whichever name it runs."""

MOVE_SECONDS = 120.0
"""Seconds of a recording after which a process is started: detection on them takes as long as starting it."""
_COUNT = struct.Struct("<I")
"""Samples of a request, or flags of a reply. A request of none begins a new recording."""


class LongRecordingDetector:
    """Detects speech in one recording from its start; samples are at 16 kHz.

    Use it as a context, at whose end its process is free for another recording.
    """

    def __init__(self) -> None:
        self._here: VoiceActivityDetector | None = None
        self._heard: list[NDArray[np.float32]] = []
        self._process: _DetectorProcess | None = None

    def __enter__(self) -> "LongRecordingDetector":
        while self._process is None and _DetectorProcess.idle:
            process = _DetectorProcess.idle.pop()
            self._process = process if process.is_alive else None
        if self._process is None:
            self._here = VoiceActivityDetector()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.is_between_requests and self._process.is_alive:
            self._process.begin_recording()
            _DetectorProcess.idle.append(self._process)

    def feed(self, samples: NDArray[np.float32]) -> list[bool]:
        """Whether each frame completed by these `[samples]` may be speech."""
        if self._process is not None:
            return self._process.feed(samples)
        assert self._here is not None, "it is used as a context"
        flags = self._here.feed(samples)
        if _can_start():
            self._heard.append(samples)
            if sum(map(len, self._heard)) >= MOVE_SECONDS * SAMPLE_RATE:
                self._move()
        return flags

    def _move(self) -> None:
        """Let a process hear the recording so far, and go on from there."""
        with suppress(OSError):  # no process can be started: it stays here, and tries again after as many seconds
            self._process = _DetectorProcess()
            self._process.feed(np.concatenate(self._heard))
            self._here = None
        self._heard = []


class _DetectorProcess:
    """A Python that does nothing else, which ends when this process does."""

    idle: "list[_DetectorProcess]" = []
    """Those between two recordings; more than one if recordings were transcribed at the same time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is the affair of the process that reads the flags
        )
        self.is_between_requests = True

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def begin_recording(self) -> None:
        """What it is fed from now on is of another recording."""
        self.feed(np.zeros(0, dtype=np.float32))

    def feed(self, samples: NDArray[np.float32]) -> list[bool]:
        """As `VoiceActivityDetector.feed`.

        Raises:
            AudioError: the process was killed.
        """
        self.is_between_requests = False
        to, back = cast(BinaryIO, self._process.stdin), cast(BinaryIO, self._process.stdout)
        try:
            to.write(_COUNT.pack(len(samples)) + samples.astype("<f4").tobytes())
            to.flush()
            flags = _read(back, *_COUNT.unpack(_read(back, _COUNT.size)))
        except (EOFError, OSError) as error:
            raise AudioError("the process that detects speech was killed: try again") from error
        self.is_between_requests = True
        return [flag != 0 for flag in flags]


if hasattr(os, "register_at_fork"):  # Windows does not fork
    os.register_at_fork(after_in_child=_DetectorProcess.idle.clear)


def _can_start() -> bool:
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return processors > 1 and bool(sys.executable)


def _read(pipe: BinaryIO, count: int) -> bytes:
    """So many bytes.

    Raises:
        EOFError: there are fewer.
    """
    taken = pipe.read(count)
    if len(taken) < count:
        raise EOFError
    return taken


def main() -> None:
    """Answer requests until there are no more."""
    detector = VoiceActivityDetector()
    with suppress(EOFError):
        while True:
            (count,) = _COUNT.unpack(_read(sys.stdin.buffer, _COUNT.size))
            if count == 0:
                detector = VoiceActivityDetector()
            flags = detector.feed(np.frombuffer(_read(sys.stdin.buffer, 4 * count), dtype="<f4"))
            sys.stdout.buffer.write(_COUNT.pack(len(flags)) + bytes(flags))
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
