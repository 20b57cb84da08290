"""The process in which files of strangers are decoded: one fork for each, with limits.

Promises: a fork holds one file and one pipe, may take so much memory and processor time and no more, and dies when
nobody reads any longer; what it does wrong ends with it, and its parent, another fork, writes what it died of.
It is run by `asr_doge.audio.file_decoding`, as `python -m asr_doge.audio.decoding_child SOCKET`.
"""

import os
import resource
import signal
import socket
import struct
import sys
from contextlib import suppress
from typing import BinaryIO

import psutil

from asr_doge.audio.reading import read_blocks
from asr_doge.errors import AudioError, DamagedAudioError

REQUEST = struct.Struct("<QIIi")
"""Bytes of memory, seconds of processor time in all, seconds that any one block may take, and the channel to read, from
0, or -1 for the mean of all."""
FRAME = struct.Struct("<cI")
"""Kind of what follows, and its length in bytes."""
BLOCK, NOTE, FAULT, DAMAGE, END, DEATH = b"B", b"N", b"F", b"D", b"E", b"X"
"""Samples; a remark on the recording; why it cannot be read; why it cannot be read further; its end; what the fork died
of, `MEMORY` or the name of a signal."""
MEMORY = "memory"
_OUT_OF_MEMORY = 3
NAME = "\0"
"""Stands for the file's name, which only the server knows, in what is said of a fault."""


def main() -> None:
    """Fork for every file that comes through the socket, until it is closed."""
    # Large libraries, loaded once so that a fork need not.
    import av  # noqa: F401
    import scipy.signal  # noqa: F401
    import soundfile  # noqa: F401

    requests = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that nobody need wait for the forks
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's affair
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, REQUEST.size, 2)
        if not message:
            return
        if os.fork() == 0:
            requests.close()
            _watch(descriptors[0], descriptors[1], *REQUEST.unpack(message))
        for descriptor in descriptors:
            os.close(descriptor)


def _watch(file: int, pipe: int, *allowed: int) -> None:
    """Decode in a fork, write to the pipe what it died of if it did, then exit."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        _decode(file, pipe, *allowed)
    _, status = os.waitpid(child, 0)
    reason = MEMORY if os.WIFEXITED(status) and os.WEXITSTATUS(status) == _OUT_OF_MEMORY else ""
    if os.WIFSIGNALED(status):
        reason = signal.Signals(os.WTERMSIG(status)).name
    if reason:
        with open(pipe, "wb", buffering=0) as output, suppress(OSError):  # nobody reads any more
            _write(output, DEATH, reason.encode())
    os._exit(0)


def _decode(file: int, pipe: int, memory: int, processor_seconds: int, block_seconds: int, channel: int) -> None:
    """Write the blocks of a file to a pipe, then exit."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # nobody reads: die
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, sys.stderr.fileno())  # libraries print what they think of a file
    _limit(memory, processor_seconds)
    path = f"/dev/fd/{file}"
    with open(pipe, "wb", buffering=0) as output:  # a descriptor, no path

        def say(kind: bytes, text: str) -> None:
            _write(output, kind, text.replace(path, NAME).encode("utf-8", "replace"))

        try:
            blocks = read_blocks(path, channel=None if channel < 0 else channel, on_note=lambda note: say(NOTE, note))
            while True:
                signal.setitimer(signal.ITIMER_REAL, block_seconds)  # which kills, wherever it hangs
                block = next(blocks, None)
                signal.setitimer(signal.ITIMER_REAL, 0)  # the reader may take its time
                if block is None:
                    break
                _write(output, BLOCK, block.tobytes())
            _write(output, END, b"")
        except AudioError as error:
            say(DAMAGE if isinstance(error, DamagedAudioError) else FAULT, str(error))
        except MemoryError:
            os._exit(_OUT_OF_MEMORY)
    os._exit(0)


def _limit(memory: int, processor_seconds: int) -> None:
    held = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (held + memory, held + memory))
    resource.setrlimit(resource.RLIMIT_CPU, (processor_seconds, processor_seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _write(output: BinaryIO, kind: bytes, content: bytes) -> None:
    message = memoryview(FRAME.pack(kind, len(content)) + content)
    while message:
        message = message[output.write(message) :]


if __name__ == "__main__":
    main()
