"""A Python for scripts to run, that has the package imported already.

It is this process, forked for each command, so that a script of many commands is tested in seconds; what runs is the
real thing, with the script's own input and output.
"""

import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_CLIENT = """#!{python} -IS
import os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, ["\\0".join(sys.argv[1:]).encode()], [0, 1, 2])
    sys.exit(int(server.recv(16)))
"""


def run_script(
    command: Sequence[str],
    folder: Path,
    prepare: Callable[[list[str]], None],
    environment: Mapping[str, str],
) -> "subprocess.CompletedProcess[str]":
    """Run a script whose Python is `$PYTHON`.

    Args:
        command: that starts it.
        folder: for what is needed beside it.
        prepare: is called in each new process, with the arguments that follow `$PYTHON`.
        environment: besides this process's.
    """
    client, address, output = folder / "python", str(folder / "socket"), folder / "output"
    client.write_text(_CLIENT.format(python=sys.executable, address=address))
    client.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener, output.open("w+") as written:
        listener.bind(address)
        listener.listen()
        listener.settimeout(0.1)
        variables = os.environ | environment | {"PYTHON": str(client)}
        script = subprocess.Popen(command, stdout=written, stderr=subprocess.STDOUT, env=variables)
        while script.poll() is None:
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection:
                connection.settimeout(10)
                sent, streams, _, _ = socket.recv_fds(connection, 65536, 3)
                connection.sendall(str(_run(sent.decode().split("\0"), streams, prepare)).encode())
        Path(address).unlink()
        written.seek(0)
        return subprocess.CompletedProcess(command, script.returncode, written.read())


def _run(arguments: list[str], streams: Sequence[int], prepare: Callable[[list[str]], None]) -> int:
    """The exit code of a command, as a shell has it."""
    child = os.fork()
    if child:
        for stream in streams:
            os.close(stream)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return code if code >= 0 else 128 - code
    status = 1
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
        prepare(arguments)
        sys.argv = arguments
        if arguments[0] == "-":
            exec(compile(sys.stdin.read(), "-", "exec"), {"__name__": "__main__"})
        elif arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(arguments[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
