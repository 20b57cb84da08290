"""Ends a process in the middle of its work, as a power cut would."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def kill_at_change(folder: Path, is_due: Callable[[], bool]) -> None:
    """SIGKILL this process just before a change in a folder (a file opened, renamed or removed) if `is_due` then."""

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        changes = event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir") or (
            event == "open" and isinstance(arguments[1], str) and "w" in arguments[1]
        )
        if changes and str(arguments[0]).startswith(str(folder)) and is_due():
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)
