"""Ends a process in the middle of its work, as a power cut would."""

import os
import signal
import sys
from pathlib import Path
from typing import Any


def kill_at_change(folder: Path, number: int) -> None:
    """SIGKILL this process just before its `number`-th change in a folder: a file opened, renamed or removed."""
    left = number

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        changes = event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir") or (
            event == "open" and isinstance(arguments[1], str) and "w" in arguments[1]
        )
        if changes and str(arguments[0]).startswith(str(folder)):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
