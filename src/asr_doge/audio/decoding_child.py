"""A fork server that decodes untrusted files, each in a fork with limits.

Promises: a fork has one file and one pipe open, has a limit of memory and of processor time, and ends when its reader
closes the pipe; a crash ends that fork alone. The server waits for its forks and writes the cause of a fork's death to
a second pipe, which the fork does not hold.
It is run by `asr_doge.audio.file_decoding`, as `python -m asr_doge.audio.decoding_child SOCKET`. Another module may
call `main` with work of its own on the samples, which this module does not know.
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
"""Takes the blocks of a recording and the options of the request; gives the messages to send."""


@dataclass(frozen=True)
class Request:
    """A request to decode a file.

    Attributes:
        memory: bytes that the fork may take.
        cpu_seconds: CPU time that the fork may take in all.
        block_seconds: elapsed time that decoding one block, and the work on it, may take.
        max_duration: of the longest recording, in seconds; infinite for any.
        channel: the channel to read, from 0; None for the mean of all.
        sampling_rate: of the blocks, in Hz.
        work_options: options of the work on the blocks, packed; at most 32 bytes, padded with zeros.
    """

    memory: int
    cpu_seconds: int
    block_seconds: int
    max_duration: float = math.inf
    channel: int | None = None
    sampling_rate: int = SAMPLE_RATE
    work_options: bytes = b""

    def packed(self) -> bytes:
        """The request as bytes for the pipe."""
        channel = -1 if self.channel is None else self.channel
        limits = self.memory, self.cpu_seconds, self.block_seconds, self.max_duration
        return _REQUEST.pack(*limits, channel, self.sampling_rate, self.work_options)

    @classmethod
    def unpacked(cls, message: bytes) -> "Request":
        """The request in a message."""
        request = cls(*_REQUEST.unpack(message))
        return request if request.channel != -1 else replace(request, channel=None)


_REQUEST = struct.Struct("<QIIdiI32s")
FRAME = struct.Struct("<cI")
"""Kind of what follows, and its length in bytes."""
BLOCK, NOTE, FAULT, DAMAGE, END = b"B", b"N", b"F", b"D", b"E"
"""Kinds of frames: a message of the work; a note on the recording; why it cannot be read; why it cannot be read
further; its end."""
MEMORY = "memory"
"""Cause of death of a fork that ran out of memory; for other causes it is the name of a signal."""
_OUT_OF_MEMORY = 3
NAME = "\0"
"""Stands in messages for the file's name, which only the caller knows."""


def send_samples(blocks: Blocks, work_options: bytes) -> Iterator[bytes]:
    """The blocks as they are."""
    return (block.tobytes() for block in blocks)


def main(work: Work = send_samples) -> None:
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
        file, pipe, cause_pipe = descriptors
        if forks.fork(cause_pipe):
            requests.close()
            try:
                _decode(file, pipe, Request.unpacked(message), work)
            except MemoryError:
                os._exit(_OUT_OF_MEMORY)
        os.close(file)
        os.close(pipe)


class _Forks:
    """The running forks, each with the pipe for the cause of its death, which stays empty if it ends well."""

    def __init__(self) -> None:
        self._cause_pipes: dict[int, int] = {}
        signal.signal(signal.SIGCHLD, self._reap)

    def fork(self, cause_pipe: int) -> bool:
        """Fork; True in the new process, in which the pipes of the other forks are closed."""
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])  # until the fork is known
        fork = os.fork()
        if fork:
            self._cause_pipes[fork] = cause_pipe
        else:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for descriptor in (cause_pipe, *self._cause_pipes.values()):
                os.close(descriptor)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        return fork == 0

    def _reap(self, number: int, frame: FrameType | None) -> None:
        """Write the cause of death of every fork that has ended."""
        with suppress(ChildProcessError):  # there are no others
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                fork, status = ended
                # The pipe was empty until now, so this does not wait for whoever reads it.
                cause_pipe = self._cause_pipes.pop(fork)
                with suppress(OSError):  # nobody reads any more
                    os.write(cause_pipe, _cause(status).encode())
                os.close(cause_pipe)


def _cause(status: int) -> str:
    """The cause of death in a status of `waitpid`; empty if there is none."""
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
    _limit(request.memory, request.cpu_seconds)
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
            for content in work(_within_limits(blocks, path, request, damage), request.work_options):
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


def _limit(memory: int, cpu_seconds: int) -> None:
    held = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (held + memory, held + memory))
    # SIGXCPU says why, where the first limit is below the second; at that Linux sends SIGKILL.
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _write(output: BinaryIO, kind: bytes, content: bytes) -> None:
    message = memoryview(FRAME.pack(kind, len(content)) + content)
    while message:
        message = message[output.write(message) :]


if __name__ == "__main__":
    main()
