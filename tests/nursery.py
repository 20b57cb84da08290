"""Decoding processes forked from one that stands by, for tests that start many: what each imports takes a second.

Each is what `asr_doge.audio.file_decoding` starts: the same module with the same socket, in a process of its own.
Fresh ones are started in `tests/audio` and by the commands that `tests/cli` runs.

    python -m tests.nursery MODULE SOCKET
"""

import contextlib
import gc
import importlib
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from asr_doge.audio import file_decoding

Start = Callable[..., Any]


class Forked:
    """A process that is not our child, with what its users need of a `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._process = psutil.Process(pid)

    def poll(self) -> int | None:
        """None while it runs."""
        return None if self._process.is_running() else 0

    def wait(self) -> None:
        """Until it has ended."""
        self._process.wait()

    def kill(self) -> None:
        """End it."""
        self._process.kill()


@contextlib.contextmanager
def nursery(module: str, folder: Path, python_path: str) -> Iterator[str]:
    """The address at which processes of a module can be asked for; see `start_at`.

    Args:
        module: of the processes.
        folder: for the address.
        python_path: of the processes.
    """
    address = str(folder / "decoders")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(100)
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.nursery", module, str(listener.fileno())],
            pass_fds=[listener.fileno()],
            stdin=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": python_path},
            cwd=Path(__file__).parents[1],
        )
    with process:
        yield address


def start_at(address: str, module: str) -> Start:
    """What starts processes of a module at this address, and fresh ones of others; `file_decoding._started` is such."""
    fresh = file_decoding._started

    def start(wanted: str) -> Any:
        if wanted != module:
            return fresh(wanted)
        ours, theirs = socket.socketpair()
        with theirs, socket.socket(socket.AF_UNIX) as asking:
            asking.connect(address)
            socket.send_fds(asking, [b"1"], [theirs.fileno()])
            return Forked(int(asking.recv(16))), ours

    return start


def main() -> None:
    """Stand by until standard input is closed; in a process that was asked for, run the module."""
    module, number = sys.argv[1:]
    for name in ("av", "scipy.signal", "soundfile", module):
        importlib.import_module(name)
    del sys.modules[module]  # which `-m` runs anew
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that end
    with socket.socket(fileno=int(number)) as listener:
        while True:
            ready, _, _ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in ready:
                return
            asking, _ = listener.accept()
            with asking, contextlib.suppress(OSError):  # who asked may be killed meanwhile
                _, given, _, _ = socket.recv_fds(asking, 1, 1)
                child = os.fork() if given else -1
                if not child:
                    break
                for descriptor in given:
                    os.close(descriptor)
                asking.sendall(str(child).encode())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [module, str(given[0])]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
