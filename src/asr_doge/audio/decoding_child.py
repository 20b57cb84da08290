"""The process in which untrusted files are decoded: one fork for each, with limits.

Promises: a fork holds one file and one pipe, may take so much memory and processor time and no more, and dies when
its reader leaves; a crash ends the fork alone. This process waits for its forks and, through a second pipe
that they do not hold, says what they died of.
It is run by `asr_doge.audio.file_decoding`, as `python -m asr_doge.audio.decoding_child SOCKET`. Another module may
call `main` with more work to do on the samples there; this one does not know what.
"""

import gc
import math
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from types import FrameType
from typing import BinaryIO

import numpy as np
import psutil
from numpy.typing import NDArray

from asr_doge.audio.reading import read_blocks
from asr_doge.audio.resampling import SAMPLE_RATE
from asr_doge.errors import AudioError, DamagedAudioError

Blocks = Iterator[NDArray[np.float32]]
Work = Callable[[Blocks, bytes], Iterator[bytes]]
"""What to send of a recording's blocks, to whom asks with these bytes."""


@dataclass(frozen=True)
class Request:
    """What is wanted of a file.

    Attributes:
        memory: bytes that it may take.
        processor_seconds: that it may take in all.
        block_seconds: that decoding any one block, and the work on it, may take.
        max_duration: of the longest recording, in seconds; infinite for any.
        channel: to read, from 0; None for the mean of all.
        sampling_rate: of the blocks, in Hz.
        asked: for the work on its blocks; 32 bytes at most, filled up with zeros.
    """

    memory: int
    processor_seconds: int
    block_seconds: int
    max_duration: float = math.inf
    channel: int | None = None
    sampling_rate: int = SAMPLE_RATE
    asked: bytes = b""

    def packed(self) -> bytes:
        """As it is sent."""
        channel = -1 if self.channel is None else self.channel
        limits = self.memory, self.processor_seconds, self.block_seconds, self.max_duration
        return _REQUEST.pack(*limits, channel, self.sampling_rate, self.asked)

    @classmethod
    def unpacked(cls, message: bytes) -> "Request":
        """As it was sent."""
        request = cls(*_REQUEST.unpack(message))
        return request if request.channel != -1 else replace(request, channel=None)


_REQUEST = struct.Struct("<QIIdiI32s")
FRAME = struct.Struct("<cI")
"""Kind of what follows, and its length in bytes."""
BLOCK, NOTE, FAULT, DAMAGE, END = b"B", b"N", b"F", b"D", b"E"
"""What was asked for, of a block or several; a remark on the recording; why it cannot be read; why it cannot be read
further; its end."""
MEMORY = "memory"
"""What a fork died of, if not of a signal, of which the name is given."""
_OUT_OF_MEMORY = 3
NAME = "\0"
"""Stands for the file's name, which only the server knows, in messages."""


def samples_alone(blocks: Blocks, asked: bytes) -> Iterator[bytes]:
    """The blocks as they are."""
    return (block.tobytes() for block in blocks)


def main(work: Work = samples_alone) -> None:
    """Fork for every file that comes through the socket, until it is closed."""
    # Large libraries, loaded once so that a fork need not.
    import av  # noqa: F401
    import scipy.signal  # noqa: F401
    import soundfile  # noqa: F401

    gc.freeze()  # so that collecting garbage in a fork does not copy what it shares
    requests = socket.socket(fileno=int(sys.argv[1]))
    forks = _Forks()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's affair
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, _REQUEST.size, 3)
        if not message:
            return
        file, pipe, death = descriptors
        if forks.is_new(death):
            requests.close()
            try:
                _decode(file, pipe, Request.unpacked(message), work)
            except MemoryError:
                os._exit(_OUT_OF_MEMORY)
        os.close(file)
        os.close(pipe)


class _Forks:
    """The forks at work, each with the pipe into which to write what it died of; nothing if it ended well."""

    def __init__(self) -> None:
        self._deaths: dict[int, int] = {}
        signal.signal(signal.SIGCHLD, self._reap)

    def is_new(self, death: int) -> bool:
        """Fork; whether this is the new process, which holds nothing of the others."""
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])  # until the fork is known
        fork = os.fork()
        if fork:
            self._deaths[fork] = death
        else:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for descriptor in (death, *self._deaths.values()):
                os.close(descriptor)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        return fork == 0

    def _reap(self, number: int, frame: FrameType | None) -> None:
        """Write what every fork that has ended died of."""
        with suppress(ChildProcessError):  # there are no others
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                fork, status = ended
                # The pipe was empty until now, so this does not wait for whoever reads it.
                death = self._deaths.pop(fork)
                with suppress(OSError):  # nobody reads any more
                    os.write(death, _cause(status).encode())
                os.close(death)


def _cause(status: int) -> str:
    """What a process died of, by what `waitpid` gives."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return signal.Signals(number).name if number in list(signal.Signals) else f"signal {number}"
    return MEMORY if os.WEXITSTATUS(status) == _OUT_OF_MEMORY else ""


def _decode(file: int, pipe: int, request: Request, work: Work) -> None:
    """Write what is wanted of a file to a pipe, then exit.

    Raises:
        MemoryError: it takes more than it may.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # nobody reads: die
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, sys.stderr.fileno())  # libraries print what they think of a file
    _limit(request.memory, request.processor_seconds)
    path = f"/dev/fd/{file}"
    with open(pipe, "wb", buffering=0) as output:  # a descriptor, no path

        def send(kind: bytes, content: bytes) -> None:
            left, _ = signal.setitimer(signal.ITIMER_REAL, 0)  # the reader may take its time
            _write(output, kind, content)
            signal.setitimer(signal.ITIMER_REAL, left)

        def say(kind: bytes, text: str) -> None:
            send(kind, text.replace(path, NAME).encode("utf-8", "replace"))

        damage: list[str] = []
        try:
            blocks = read_blocks(path, request.sampling_rate, request.channel, lambda note: say(NOTE, note))
            for content in work(_within_limits(blocks, path, request, damage), request.asked):
                send(BLOCK, content)
            say(DAMAGE if damage else END, "".join(damage))
        except AudioError as error:
            say(FAULT, str(error))
    os._exit(0)


def _within_limits(blocks: Blocks, path: str, request: Request, damage: list[str]) -> Blocks:
    """Blocks until they end, in damage or without; of the former it is noted why.

    Raises:
        AudioError: they cannot be read, or are too many.
    """
    samples = 0
    with suppress(StopIteration):
        while True:
            signal.setitimer(signal.ITIMER_REAL, request.block_seconds)  # which kills, wherever it hangs
            try:
                block = next(blocks)
            except DamagedAudioError as error:
                damage.append(str(error))
                return
            samples += len(block)
            if samples > request.max_duration * request.sampling_rate:
                raise AudioError(
                    f"{path} is longer than {request.max_duration:.0f} s, which is the most this server takes: cut it"
                    " into parts."
                )
            yield block


def _limit(memory: int, processor_seconds: int) -> None:
    held = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (held + memory, held + memory))
    # SIGXCPU says why, where the first limit is below the second; at that Linux sends SIGKILL.
    resource.setrlimit(resource.RLIMIT_CPU, (processor_seconds, processor_seconds + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _write(output: BinaryIO, kind: bytes, content: bytes) -> None:
    message = memoryview(FRAME.pack(kind, len(content)) + content)
    while message:
        message = message[output.write(message) :]


if __name__ == "__main__":
    main()
