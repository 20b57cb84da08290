"""Progress of long work: a bar on a terminal, and a line every so often where standard error is a file or a pipe.

Promises: work that is done within half a minute prints nothing but its bar; a log holds whole lines, no carriage
returns; a process that was forked can show it too. It knows nothing of the work.
"""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from threading import RLock
from typing import Any, TextIO

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30.0


def _renew_lock() -> None:
    """Give all kinds of bars a new lock.

    A thread of tqdm's looks at the bars every ten seconds, under the lock that every new bar takes. If it does so as
    the process is forked, the new one has the lock, locked, and not that thread, and would wait for ever.
    """
    kinds, lock = [tqdm], RLock()
    for kind in kinds:
        kind.set_lock(lock)  # each may have one of its own
        kinds.extend(kind.__subclasses__())


if hasattr(os, "register_at_fork"):  # Windows does not fork
    os.register_at_fork(after_in_child=_renew_lock)


class ProgressLines(tqdm):  # type: ignore[misc]  # whose stubs are not installed
    """A bar that writes a line each time."""

    @staticmethod
    def status_printer(file: TextIO) -> Callable[[str], None]:
        """A function that writes each different status once, on its own line."""
        written = ""

        def write(status: str) -> None:
            nonlocal written
            if status.strip() and status != written:
                file.write(f"{status.strip()}\n")
                file.flush()
                written = status

        return write

    def clear(self, nolock: bool = False) -> None:
        """Lines stay when others are written, as by `tqdm.write`."""

    def refresh(self, nolock: bool = False, lock_args: tuple[Any, ...] | None = None) -> None:
        """Write a line if one is due; `tqdm.write` and `set_postfix` ask for one each time."""
        now = self._time()
        begun = getattr(self, "start_t", now)  # as it is made, it has none
        if now >= begun + self.delay and now - getattr(self, "last_print_t", begun) >= self.mininterval:
            super().refresh(nolock, lock_args)
            self.last_print_t = now

    def close(self) -> None:
        """End with a last line, if there was any: `tqdm` would add an empty one."""
        if self.disable:
            return
        self.disable: bool = True
        self._decr_instances(self)
        if self.last_print_t >= self.start_t + self.delay:
            self.display()


def progress_bar(*arguments: Any, bar_format: str | None = None, **options: Any) -> Any:
    """A `tqdm` bar with these arguments, or lines where standard error is no terminal, which have their own form."""
    if sys.stderr.isatty():
        return tqdm(*arguments, bar_format=bar_format, **_shape(), **options)
    return progress_lines(*arguments, **options)


def _shape() -> dict[str, Any]:
    """Options of a bar as wide as the terminal. Where a terminal says that it has no rows, tqdm would show nothing."""
    with suppress(OSError, ValueError):
        size = os.get_terminal_size(sys.stderr.fileno())
        if not size.lines:
            return {"ncols": size.columns or 80, "nrows": 24}
    return {"dynamic_ncols": True}


def progress_lines(*arguments: Any, seconds: float = SECONDS_BETWEEN_LINES, **options: Any) -> ProgressLines:
    """Lines every so many seconds, the first after as many."""
    form = "{desc}: {n_fmt} of {total_fmt} {unit}, {percentage:.0f} %, {elapsed} so far, {remaining} to go{postfix}"
    if options.get("total") is None and not hasattr(next(iter(arguments), None), "__len__"):
        form = "{desc}: {n_fmt} {unit}, {elapsed} so far{postfix}"
    return ProgressLines(
        *arguments, mininterval=seconds, maxinterval=seconds, miniters=1, delay=seconds, bar_format=form, **options
    )
