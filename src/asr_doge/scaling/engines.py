"""The engine of one process: it runs tasks one after another, and retries them when a stage fails.

Promises: every task is done, or is left with a line that says why, or the error that stops the job is raised. Only the
worker knows what a task is (see `asr_doge.scaling.shard_worker`); `asr_doge.scaling.ray_engine` runs the same workers
on a cluster.
"""

import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from asr_doge.errors import DataError

MOST_TRIES = 3
"""Attempts at a task whose input or output cannot be reached, before it is left."""
_PAUSE_SECONDS = 1.0
"""Pause after such a failure; after the second in a row it is twice as long, and so on."""

Task = TypeVar("Task")
Task_in = TypeVar("Task_in", contravariant=True)


class TransientError(DataError):
    """Raised if a task cannot be done now, but perhaps later or on another machine."""


class StageError(Exception):
    """Raised if a stage of a task failed; a worker must try the task again, and limits the number of attempts."""


class Worker(Protocol[Task_in]):
    """Runs tasks with what it has loaded once."""

    def start(self) -> str | None:
        """Load what the tasks need; returns a note for the user, if any."""

    def run(self, task: Task_in, is_last: bool = False) -> Any:
        """Run a task, commit it, and return a report; running it again changes nothing.

        Args:
            task: the task.
            is_last: whether it is left after another `TransientError`.

        Raises:
            TransientError, StageError: the task must be tried again.
            ASRDogeError: the job must stop.
        """

    def close(self) -> None:
        """Release all resources."""


class RetryLimit(Generic[Task]):
    """Counts transient errors, and decides which tasks to try again.

    Args:
        workers: number of workers, each of which may have a fault of its own.

    Attributes:
        left: the reason of each task that is no longer tried.
    """

    def __init__(self, workers: int) -> None:
        self._limit = (MOST_TRIES + 1) * workers
        self._in_a_row = 0
        self._tasks_in_a_row = 0
        self._tries: Counter[Task] = Counter()
        self.left: list[str] = []

    def note_success(self) -> None:
        """Note that a task was done."""
        self._in_a_row = self._tasks_in_a_row = 0

    def is_last_try(self, task: Task) -> bool:
        """Whether a task is left after its next failure."""
        return self._tries[task] == MOST_TRIES - 1

    def may_retry(self, task: Task, error: TransientError) -> bool:
        """Whether to try a task again.

        Raises:
            TransientError: so many tasks failed in a row that the others will fail too.
        """
        self._in_a_row += 1
        self._tries[task] += 1
        self._tasks_in_a_row += self._tries[task] == 1  # the same task again says nothing of the others
        if self._tasks_in_a_row >= self._limit:
            raise error
        if self._tries[task] < MOST_TRIES:
            return True
        self.left.append(str(error))
        return False

    @property
    def pause(self) -> float:
        """Seconds to wait before the next task."""
        return _PAUSE_SECONDS * self._in_a_row


def run_here(make: Callable[[], Worker[Task]], tasks: Sequence[Task], on_report: Callable[[Any], None]) -> list[str]:
    """Run tasks in this process; returns the reasons of those that were left, which cannot be done now.

    Raises:
        ASRDogeError: as the worker raises; or nothing can be done now.
    """
    if not tasks:
        return []
    waiting = deque(tasks)
    retry_limit: RetryLimit[Task] = RetryLimit(1)
    has_traced = False
    worker = make()
    try:
        worker.start()
        while waiting:
            task = waiting.popleft()
            try:
                on_report(worker.run(task, retry_limit.is_last_try(task)))
            except TransientError as error:
                if retry_limit.may_retry(task, error):
                    waiting.append(task)
                time.sleep(retry_limit.pause)
            except StageError as error:
                note_failure(str(error), "its task is tried again")
                if error.__cause__ is not None and not has_traced:  # a defect, of which the first trace is enough
                    traceback.print_exception(error.__cause__)
                    has_traced = True
                waiting.appendleft(task)
            else:
                retry_limit.note_success()
    finally:
        worker.close()
    return retry_limit.left


def note_failure(reason: str, remedy: str) -> None:
    """Say that a worker failed, and what is done about it."""
    first = reason.splitlines()[0] if reason else "no reason given"
    print(f"a worker failed ({first}): {remedy}", file=sys.stderr)
