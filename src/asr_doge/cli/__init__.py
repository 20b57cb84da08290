"""The `asr-doge` command line: one file per command.

Promises: a user's mistake is one line on stderr and exit code 2; Ctrl-C is exit code 130, and finished work is kept;
any text and any file name can be printed; a reader that stops early (`asr-doge … | head`) causes no message. Output
that cannot be written, closed streams and a deleted working directory are one line too.
"""

import errno
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from io import StringIO, TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn, TextIO

from asr_doge.cli.commands import COMMANDS, run_command, split_command
from asr_doge.errors import ASRDogeError

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    _open_standard_streams()
    output = _Output(sys.stdout)
    with redirect_stdout(output):
        try:
            code = _run(list(sys.argv[1:] if arguments is None else arguments))
            output.flush()
        except ASRDogeError as error:
            code = _fail(f"error: {error}")
        except OSError as error:
            code = 2
            if output.error is None and (error.filename is None or error.strerror is None):
                raise  # not about a file, so that it may well be a defect
            if output.error is None:
                _fail(f"error: {os.fsdecode(error.filename)}: {error.strerror}")
        except KeyboardInterrupt:
            code = INTERRUPTED
            _fail("\ninterrupted")
    return code if output.error is None else output.lost()


def run() -> NoReturn:
    """Run the command and end the process with its exit code.

    After Ctrl-C it ends at once: else Python would wait for batches at work in other threads, which nobody wants.
    """
    code = main()
    threads = sys.modules.get("asr_doge.inference.model_threads")  # which needs torch
    if code == INTERRUPTED and threads is not None and threads.are_any_alive():
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    """Do what the arguments say."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    command, rest = split_command(arguments)
    if command == "--version":
        from asr_doge import __version__

        print(f"asr-doge {__version__}")
        return 0
    if command == "--print_completion":
        from asr_doge.cli.completion import completion_script

        print(completion_script(" ".join(rest)))
        return 0
    if command not in COMMANDS:
        return _fail(f"asr-doge: unknown command '{command}'; choose from {', '.join(COMMANDS)}")
    try:
        Path.cwd()
    except OSError:
        return _fail("error: the working directory does not exist any more: change to one that does")
    try:
        return run_command(command, rest)
    except SystemExit as end:  # after --help, whose text is still to be flushed
        return end.code if isinstance(end.code, int) else 0


class _Output:
    """Standard output that remembers a failed write, even if a library ignores it."""

    def __init__(self, file: TextIO | None) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        return self._attempt(lambda file: file.write(text))

    def flush(self) -> None:
        if self._file is not None:  # a closed one matters only if something is printed
            self._attempt(lambda file: file.flush())

    def _attempt(self, operation: Callable[[TextIO], Any]) -> Any:
        try:
            if self._file is None:
                raise OSError(errno.EBADF, "it is closed")
            return operation(self._file)
        except OSError as error:
            self.error = self.error or error
            raise

    def lost(self) -> int:
        """Discard unwritten output and report why, except to a reader that stopped; returns the exit code."""
        if self._file is not None:
            _forget(self._file)
        if isinstance(self.error, BrokenPipeError):
            return 141
        reason = self.error.strerror if self.error else None
        return _fail(f"error: standard output cannot be written ({reason}): send it elsewhere")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file if self._file is not None else StringIO(), name)


def _open_standard_streams() -> None:
    """Make every text printable, and keep files from taking the descriptor of a closed stream."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which takes the lowest free number: this one
    if sys.stderr is None:  # otherwise its messages would go to standard output
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - for as long as the process lives
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr is from the start


def _usage() -> str:
    lines = [
        "usage: asr-doge COMMAND [options]",
        "",
        "Parameter-efficient speech recognition: a frozen speech encoder, a small adapter, a small language model.",
        "",
        *(f"  {name:<17} {command.meaning}" for name, command in COMMANDS.items()),
        "",
        "asr-doge COMMAND --help says more; asr-doge --print_completion bash (zsh, tcsh) is for Tab completion.",
        "Try: asr-doge transcribe recording.wav",
    ]
    return "\n".join(lines)


def _fail(message: str) -> int:
    try:
        print(message, file=sys.stderr, flush=True)
    except OSError:  # only the exit code can still tell
        _forget(sys.stderr)
    return 2


def _forget(file: TextIO) -> None:
    """Discard unwritten output; otherwise Python reports an error when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
