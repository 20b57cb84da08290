"""Decoding processes forked from one that stands by, for tests that start many: what each imports takes a second.

Each is what `asr_doge.audio.file_decoding` starts: the same module with the same socket, in a process of its own.
Fresh ones are started by `tests/audio/test_file_decoding.py`, by jobs in processes of their own, and on a cluster.

    python -m tests.nursery MODULE SOCKET
"""

import contextlib
import gc
import importlib
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from asr_doge.audio import file_decoding

Start = Callable[[str], tuple[Any, socket.socket]]


class Forked(psutil.Process):
    """A process that is not our child, with what `subprocess.Popen` has."""

    def poll(self) -> int | None:
        """None while it runs."""
        return None if self.is_running() else 0


@contextlib.contextmanager
def nursery(module: str, python_path: str) -> Iterator[Start]:
    """A function that starts a decoding process, in the place of that of `asr_doge.audio.file_decoding`.

    It starts a fresh one for another module.
    """
    fresh = file_decoding._started
    requests, theirs = socket.socketpair()
    command = [sys.executable, "-m", "tests.nursery", module, str(theirs.fileno())]
    root = Path(__file__).parents[1]
    with theirs:
        process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], env=os.environ | {"PYTHONPATH": python_path}, cwd=root
        )

    def start(wanted: str) -> tuple[Any, socket.socket]:
        if wanted != module:
            return fresh(wanted)
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(requests, [b"1"], [theirs.fileno()])
        return Forked(int(requests.recv(16))), ours

    with requests:
        yield start
    process.wait()


def main() -> None:
    """Stand by until the tests end; in a process that was asked for, run the module."""
    module, number = sys.argv[1:]
    for name in ("av", "scipy.signal", "soundfile", module):
        importlib.import_module(name)
    del sys.modules[module]  # which `-m` runs anew
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that end
    with socket.socket(fileno=int(number)) as requests:
        while True:
            message, given, _, _ = socket.recv_fds(requests, 1, 1)
            if not message:
                return
            child = os.fork()
            if not child:
                break
            os.close(given[0])
            requests.sendall(str(child).encode())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [module, str(given[0])]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
