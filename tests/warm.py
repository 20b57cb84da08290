"""A Python that has the package imported already, for tests that start many: half of what such a test takes is imports.

Each command is a process of its own, forked from one that has imported everything and computed nothing. It has its
caller's arguments, folder, environment and standard streams, closed ones included, gets its Ctrl-C, and ends as every
Python does, by writing what it holds. What importing itself may print or wait for is tested with fresh Pythons
(`tests/cli`).

    python -m tests.warm SOCKET        # waits for commands, which `CLIENT` sends
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

CLIENT = """#!{python} -IS
import os

def is_open(number):
    try:
        os.fstat(number)
    except OSError:
        return False
    return True

streams = [number for number in range(3) if is_open(number)]  # before anything else is opened

import json, signal, socket, sys

with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    command = json.dumps([sys.argv[1:], dict(os.environ), streams]).encode()
    socket.send_fds(server, [len(command).to_bytes(4, "big")], [os.open(".", os.O_RDONLY), *streams])
    server.sendall(command)
    process = int(server.recv(16))
    signal.signal(signal.SIGINT, lambda number, _: os.kill(process, number))
    sys.exit(int(server.recv(16)))
"""
IMPORTED = (
    "asr_doge.cli.transcribe",
    "asr_doge.cli.train",
    "asr_doge.data.digits",
    "asr_doge.audio.synthesis",
    "scipy.signal",
    "pip._internal.commands.download",
    "tests.models.tiny",  # for transformers' models of the usual kinds
)


@contextlib.contextmanager
def warm_python(folder: Path) -> Iterator[Path]:
    """The path of an executable to be used as Python, for modules (`-m`), commands (`-c`) and scripts."""
    client, address = folder / "python", folder / "socket"
    command = [sys.executable, "-m", "tests.warm", str(address)]
    root = Path(__file__).parents[1]
    # With an input of its own, as the first three numbers must be taken.
    with subprocess.Popen(command, cwd=root, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            client.write_text(CLIENT.format(python=sys.executable, address=str(address)))
            client.chmod(0o755)
            yield client
        finally:
            server.terminate()


def main() -> None:
    """Serve until the tests end; in the process of a command, run it."""
    tests = os.getppid()
    gc.disable()
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # as the end of a process looks for garbage, it would copy each page of memory
    gc.enable()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen()
        listener.settimeout(10)
        print("ready", flush=True)
        while True:
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                if os.getppid() == tests:
                    continue
                return
            size, given, _, _ = socket.recv_fds(connection, 4, 4)
            left, content = int.from_bytes(size, "big"), b""
            while len(content) < left:
                part = connection.recv(left - len(content))
                if not part:
                    break
                content += part
            if len(content) < max(left, 1):  # its caller is gone
                for number in given:
                    os.close(number)
                connection.close()
                continue
            child = os.fork()
            if not child:
                connection.close()
                break
            for number in given:
                os.close(number)
            with contextlib.suppress(OSError):  # its caller is gone
                connection.sendall(f"{child:<16}".encode())
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            with contextlib.suppress(OSError):
                connection.sendall(str(code if code >= 0 else 128 - code).encode())
            connection.close()
    arguments, environment, streams = json.loads(content)
    become(environment, streams, given)
    end(run(arguments))


def become(environment: dict[str, str], streams: list[int], given: list[int]) -> None:
    """Take the caller's place, in the folder and with the open streams that are `given`."""
    folder, *files = given
    os.fchdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number in range(3):
        os.close(number)
    for number, file in zip(streams, files, strict=True):
        os.dup2(file, number)
    for number in given:
        os.close(number)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        opened = stream(number) if number in streams else None
        setattr(sys, name, opened)
        setattr(sys, f"__{name}__", opened)


def run(arguments: list[str]) -> int:
    """Run a command; returns its exit code."""
    try:
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        elif arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            exec(compile(arguments[1], "-c", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = arguments
            sys.path[0] = str(Path(arguments[0]).resolve().parent)
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as asked:
        if asked.code is None or isinstance(asked.code, int):
            return asked.code or 0
        print(asked.code, file=sys.stderr)
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def end(code: int) -> None:
    """End as Python does, but for taking all modules apart, which takes half a second."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
    except OSError as error:
        print(f"Exception ignored in: {stream!r}\n{error!r}", file=sys.stderr)
        code = 120
    os._exit(code)


def stream(number: int) -> TextIO:
    """A standard stream as Python opens it."""
    errors = "backslashreplace" if number == 2 else "strict"
    buffering = 1 if number == 2 else -1
    return open(number, "r" if number == 0 else "w", buffering, encoding="utf-8", errors=errors, closefd=False)


if __name__ == "__main__":
    main()
