"""The `asr-doge` command: one thin file a verb.

Promises: a user's mistake is one line on stderr and exit code 2; Ctrl-C is exit code 130, with what was finished kept;
no text or file name is beyond printing, and a reader that stops early (`asr-doge … | head`) ends it in silence.
"""

import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper

from asr_doge.cli.verbs import VERBS, run_verb, split_verb
from asr_doge.errors import ASRDogeError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr is from the start
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    verb, rest = split_verb(arguments)
    if verb == "--version":
        from asr_doge import __version__

        print(f"asr-doge {__version__}")
        return 0
    if verb not in VERBS:
        return _fail(f"asr-doge: unknown verb '{verb}'; choose from {', '.join(VERBS)}")
    try:
        code = run_verb(verb, rest)
        sys.stdout.flush()
        return code
    except ASRDogeError as error:
        return _fail(f"error: {error}")
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # else Python complains when it flushes at its end
        return 141
    except OSError as error:
        if error.filename is None or error.strerror is None:
            raise  # not about a file, so that it may well be a defect
        return _fail(f"error: {os.fsdecode(error.filename)}: {error.strerror}")
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def _usage() -> str:
    lines = [
        "usage: asr-doge VERB [options]",
        "",
        "Parameter-efficient speech recognition: a frozen speech encoder, a small adapter, a small language model.",
        "",
        *(f"  {name:<17} {verb.meaning}" for name, verb in VERBS.items()),
        "",
        "asr-doge VERB --help says more. Try: asr-doge transcribe recording.wav",
    ]
    return "\n".join(lines)


def _fail(message: str) -> int:
    print(message, file=sys.stderr)
    return 2
