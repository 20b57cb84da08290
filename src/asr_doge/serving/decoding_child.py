"""The process in which files of strangers are decoded: one fork for each, with limits.

Promises: a fork holds one file and one pipe, may take so much memory and processor time and no more, and dies when
nobody reads any longer; what it does wrong ends with it.
It is run by `asr_doge.serving.file_decoding`, as `python -m asr_doge.serving.decoding_child SOCKET`.
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

REQUEST = struct.Struct("<QII")
"""Bytes of memory, seconds of processor time in all, and seconds that any one block may take."""
FRAME = struct.Struct("<cI")
"""Kind of what follows, and its length in bytes."""
BLOCK, NOTE, FAULT, DAMAGE, END = b"B", b"N", b"F", b"D", b"E"
"""Samples; a remark on the recording; why it cannot be read; why it cannot be read further; its end."""
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
            _decode(descriptors[0], descriptors[1], *REQUEST.unpack(message))
        for descriptor in descriptors:
            os.close(descriptor)


def _decode(file: int, pipe: int, memory: int, processor_seconds: int, block_seconds: int) -> None:
    """Write the blocks of a file to a pipe, then exit."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # nobody reads: die
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, sys.stderr.fileno())  # libraries print what they think of a file
    _limit(memory, processor_seconds)
    path = f"/dev/fd/{file}"
    with open(pipe, "wb", buffering=0) as output, suppress(MemoryError):  # a descriptor, no path

        def say(kind: bytes, text: str) -> None:
            _write(output, kind, text.replace(path, NAME).encode("utf-8", "replace"))

        try:
            blocks = read_blocks(path, on_note=lambda note: say(NOTE, note))
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
