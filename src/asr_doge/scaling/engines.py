"""The engine of one process: tasks one after another, tried again when a stage fails.

Promises: every task is done, or the error that stops the job is raised: one that a user can mend at once, any other
after `MOST_FAILURES` in a row without a task done. What a task is, the worker knows (see
`asr_doge.scaling.shard_worker`). `asr_doge.scaling.ray_engine` runs the same workers on a cluster.
"""

import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from asr_doge.errors import ASRDogeError, DataError

MOST_FAILURES = 200
"""Failures one after another, without one task done between, that stop the job."""
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
    if not tasks:
        return
    worker = make()
    try:
        worker.start()
        for task in tasks:
            on_report(_done(worker, task))
    finally:
        worker.close()


def _done(worker: Worker[Task], task: Task) -> Any:
    """The report of a task, which is tried again when a stage fails: the worker knows what it was at."""
    failures = 0
    while True:
        try:
            return worker.run(task)
        except ASRDogeError:
            raise
        except Exception as error:
            failures = note_failure(failures, f"{type(error).__name__}: {error}", traceback.format_exc())


def note_failure(failures: int, reason: str, detail: str = "", *, has_begun: bool = True) -> int:
    """Say that a worker failed; returns how often one did in a row.

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
        raise DataError(f"workers failed {failures + 1} times in a row, at last with {first}")
    print(f"a worker failed ({first}): its recordings are tried again", file=sys.stderr)
    if detail and not failures:  # a defect, of which the first trace is enough
        print(detail.rstrip(), file=sys.stderr)
    return failures + 1
