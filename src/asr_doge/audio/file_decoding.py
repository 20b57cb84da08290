"""Decode untrusted recordings to blocks of samples, or to what is made of these, in a process of their own.

Promises: a file that needs too much memory or time, or that breaks a decoder, is an `AudioError` in its place and
affects no other; decoding runs no further ahead than a pipe holds, and ends when its reader stops reading.
A fork server decodes them, so that a file costs a fork and not a start of Python. POSIX only.
"""

import math
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from asr_doge.audio.decoding_child import BLOCK, DAMAGE, END, FRAME, MEMORY, NAME, NOTE, Request
from asr_doge.audio.files import file_on_disk
from asr_doge.audio.reading import as_clip, gather
from asr_doge.audio.resampling import SAMPLE_RATE
from asr_doge.audio.sound import Note, log_note
from asr_doge.errors import AudioError, DamagedAudioError, in_one_line

BLOCK_SECONDS = 20
"""Time that decoding a block of some seconds may take."""
LEAST_SECONDS = 30
"""Seconds of the processor that any recording may take, however short."""
SLOWEST = 20
"""Seconds of audio that a second of the processor decodes, at least; usual are several hundred."""
_LONGEST_SECONDS = 7 * 24 * 3600
"""Length of a recording whose decoding may take as long as it needs, if no limit is set."""
MOST_BYTES = 1 << 24
"""Most bytes that a fork sends at a time."""
_PACKAGES = Path(__file__).resolve().parents[2]
"""Folder that holds this package. `python -m` looks for modules in its working folder first, which may hold
untrusted files."""


class DecoderDiedError(AudioError):
    """A recording whose decoder could not begin, crashed, hung or took too much memory or time."""


class FileDecoder:
    """Decodes files in forks of a fork server.

    Args:
        memory: bytes that one file may take.
        max_duration: longest recording, in seconds; None for any.
        module: that the fork server runs; it calls `decoding_child.main`.
        most_bytes: largest message of a fork.

    Attributes:
        process: the fork server.
    """

    def __init__(
        self,
        memory: int,
        max_duration: float | None = None,
        module: str = "asr_doge.audio.decoding_child",
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._memory, self._max_duration, self._module, self._most_bytes = memory, max_duration, module, most_bytes
        self._lock = threading.Lock()
        self.process, self._socket = _started(module)

    def blocks(
        self,
        file: BinaryIO,
        name: str,
        cancelled: threading.Event,
        on_note: Note = log_note,
        channel: int | None = None,
        sampling_rate: int = SAMPLE_RATE,
    ) -> Iterator[NDArray[np.float32]]:
        """A recording's samples.

        Args:
            file: with a descriptor; it is read from its start.
            name: what to call it in messages.
            cancelled: set by the caller when it no longer wants the samples.
            on_note, channel, sampling_rate: as in `read_blocks`.

        Raises:
            DecoderDiedError: its decoder crashed, or it cannot be decoded within the limits.
            AudioError: it cannot be read, or is too long.
            DamagedAudioError: it is truncated or damaged; what is there of it was given.
        """
        messages = self.messages(file, name, cancelled, on_note, channel, sampling_rate)
        return (np.frombuffer(block, dtype=np.float32) for block in messages)

    def messages(
        self,
        file: BinaryIO,
        name: str,
        cancelled: threading.Event,
        on_note: Note = log_note,
        channel: int | None = None,
        sampling_rate: int = SAMPLE_RATE,
        work_options: bytes = b"",
    ) -> Iterator[bytes]:
        """The messages of the module's work on a recording, given `work_options`; all else is as in `blocks`."""
        with self._decoded(file.fileno(), name, channel, sampling_rate, work_options) as (pipe, cause_pipe):
            while True:
                kind, content = _frame(pipe, self._most_bytes)
                if kind == END or cancelled.is_set():
                    return
                if not kind:
                    raise DecoderDiedError(_cause_of_death(name, cause_pipe.read().decode()))
                if kind != BLOCK:
                    text = content.decode("utf-8", "replace").replace(NAME, name)
                    if kind == NOTE:
                        on_note(text)
                        continue
                    raise (DamagedAudioError if kind == DAMAGE else AudioError)(text)
                yield content

    def read_clip(self, path: Path, sampling_rate: int, longest: int | None) -> NDArray[np.float32]:
        """`asr_doge.audio.reading.read_clip`, decoded in a fork; errors as there, and `DecoderDiedError`."""
        name = in_one_line(str(path))
        with file_on_disk(path) as copy, copy.open("rb") as file:
            waveform = gather(self.blocks(file, name, threading.Event(), sampling_rate=sampling_rate))
        return as_clip(waveform, path, sampling_rate, longest)

    def close(self) -> None:
        """End the fork server; its forks end with their readers."""
        with self._lock:
            self._socket.close()
            self.process.wait()

    @contextmanager
    def _decoded(
        self, descriptor: int, name: str, channel: int | None, sampling_rate: int, work_options: bytes
    ) -> Iterator[tuple[BinaryIO, BinaryIO]]:
        """The pipes of a fork that decodes a file: what it writes, and the cause of its death."""
        cpu_seconds = LEAST_SECONDS + round((self._max_duration or _LONGEST_SECONDS) / SLOWEST)
        longest = math.inf if self._max_duration is None else self._max_duration
        request = Request(self._memory, cpu_seconds, BLOCK_SECONDS, longest, channel, sampling_rate, work_options)
        with ExitStack() as ours:
            try:
                with ExitStack() as theirs:
                    blocks, into_pipe = _pipe(ours, theirs)
                    cause, into_cause = _pipe(ours, theirs)
                    self._send(request.packed(), [descriptor, into_pipe, into_cause])
            except OSError as error:  # such as too many open files
                raise DecoderDiedError(f"{name} cannot be decoded now ({error.strerror}): try again later.") from error
            yield blocks, cause

    def _send(self, request: bytes, descriptors: list[int]) -> None:
        with self._lock:
            try:
                socket.send_fds(self._socket, [request], descriptors)
            except OSError:  # the process is gone, which a new one mends
                self._socket.close()
                self.process.wait()
                self.process, self._socket = _started(self._module)
                socket.send_fds(self._socket, [request], descriptors)


def _pipe(ours: ExitStack, theirs: ExitStack) -> tuple[BinaryIO, int]:
    """A pipe: the end that we read, closed by `ours`, and the descriptor of the other end, closed by `theirs`."""
    reading, writing = os.pipe()
    theirs.callback(os.close, writing)
    return ours.enter_context(os.fdopen(reading, "rb")), writing


def _frame(pipe: BinaryIO, most_bytes: int) -> tuple[bytes, bytes]:
    """Kind and content of the next frame; an empty kind if the pipe ends before the frame is complete."""
    header = pipe.read(FRAME.size)
    if len(header) < FRAME.size:
        return b"", b""
    kind, length = FRAME.unpack(header)
    content = pipe.read(min(length, most_bytes))
    return (kind, content) if len(content) == length else (b"", b"")


def _cause_of_death(name: str, reason: str) -> str:
    """One line on a decoder that died; `reason` is the name of a signal, `MEMORY`, or empty where it is not known."""
    if not reason:
        return f"{name} could not be decoded: its decoder ended without saying why. Try again, or convert it to WAV."
    what = {
        MEMORY: " (out of memory)",
        "SIGALRM": f" (none of it came in {BLOCK_SECONDS} s)",
        "SIGXCPU": " (its share of processor time is used up)",
        "SIGKILL": " (it was killed)",
    }
    if reason in what:
        return f"{name} takes too much memory or time to decode{what[reason]}: convert it to WAV or FLAC."
    return f"{name} crashes its decoder ({reason}): convert it to WAV or FLAC."


def _started(module: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A new fork server, and the socket to it."""
    ours, theirs = socket.socketpair()
    with ExitStack() as unless_started, theirs:
        unless_started.callback(ours.close)
        command = [sys.executable, "-m", module, str(theirs.fileno())]
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=os.environ | single, cwd=_PACKAGES)
        unless_started.pop_all()
        return process, ours
