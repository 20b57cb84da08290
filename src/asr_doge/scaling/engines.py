"""The engine of one process: tasks one after another, by a worker that is replaced when it fails.

Promises: every task is done by some worker, or the error that stops the job is raised; a worker that raises anything
but an error that a user can mend is replaced, at most `MOST_FAILURES` times in a row without a task done. What a task
is, the worker knows (see `asr_doge.scaling.shard_worker`). `asr_doge.scaling.ray_engine` runs the same workers on a
cluster.
"""

import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from asr_doge.errors import ASRDogeError, DataError

MOST_FAILURES = 50
"""Workers that may fail one after another, without one task done between."""
MOST_FALSE_STARTS = 4
"""The same of workers that fail before they begin a task."""

Task = TypeVar("Task")
Task_in = TypeVar("Task_in", contravariant=True)


class Worker(Protocol[Task_in]):
    """Does tasks; what it holds is loaded once."""

    def start(self) -> None:
        """Load what it needs."""

    def run(self, task: Task_in) -> Any:
        """Do a task and commit it, and return a report; doing it again changes nothing."""

    def close(self) -> None:
        """Leave nothing behind."""


def run_here(make: Callable[[], Worker[Task]], tasks: Sequence[Task], on_report: Callable[[Any], None]) -> None:
    """Do tasks in this process, in order.

    Raises:
        ASRDogeError: as the worker raises; or workers fail again and again.
    """
    failures = 0
    worker: Worker[Task] | None = None
    try:
        for task in tasks:
            while True:
                if worker is None:
                    worker = make()
                    worker.start()
                try:
                    report = worker.run(task)
                    break
                except ASRDogeError:
                    raise
                except Exception as error:
                    failures = note_failure(failures, f"{type(error).__name__}: {error}", traceback.format_exc())
                    worker.close()
                    worker = None
            failures = 0
            on_report(report)
    finally:
        if worker is not None:
            worker.close()


def note_failure(failures: int, reason: str, detail: str = "", *, has_begun: bool = True) -> int:
    """Say that a worker failed; returns how many did in a row.

    Args:
        failures: how many did before.
        reason: why it did.
        detail: where, in many lines.
        has_begun: whether it had begun a task.

    Raises:
        DataError: too many did.
    """
    first = reason.splitlines()[0] if reason else "no reason given"
    if failures + 1 >= (MOST_FAILURES if has_begun else MOST_FALSE_STARTS):
        raise DataError(f"{failures + 1} workers failed one after another, the last with {first}")
    print(f"a worker failed and is replaced ({first})", file=sys.stderr)
    if detail and not failures:  # a defect, of which the first trace is enough
        print(detail.rstrip(), file=sys.stderr)
    return failures + 1
