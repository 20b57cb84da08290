"""The engine of a Ray cluster: the workers of `asr_doge.scaling.engines` as actors, on as many nodes as there are.

Promises: every task is done by some worker, or is left with a line that says why, or the error that stops the job is
raised; a worker whose process, node or stage fails is replaced, and its task is tried again; fewer nodes make the
job slower and never hang it; too few workers are an error after `wait_for_workers`, in one line. Ray only schedules:
what is complete and what is given up is in the output (see `asr_doge.scaling.shards`), so nothing depends on Ray's own
retries, which are off.

Ray Data is not used; `docs/scale.md` says why.
"""

import logging
import math
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic

from asr_doge.data.stores import is_url
from asr_doge.errors import ASRDogeError, ConfigError, DataError
from asr_doge.scaling.configuration import EngineConfig
from asr_doge.scaling.engines import RetryLimit, StageError, Task, TransientError, Worker, note_failure

CONNECT_SECONDS = 10.0
"""Seconds in which a cluster must answer."""
MOST_FALSE_STARTS = 4
"""Workers in a row that fail in the same place, before they begin a task, after which the job stops."""
_LOOK_SECONDS = 1.0


def run_on_ray(
    make: Callable[[], Worker[Task]],
    tasks: Sequence[Task],
    config: EngineConfig,
    on_report: Callable[[Any], None],
    paths: Iterable[str | Path | None],
    on_worker_death: Callable[[Task, str], Sequence[Task]],
    decode_workers: int = 0,
) -> list[str]:
    """Run tasks on a cluster, in any order; returns the reasons of those that were left, which cannot be done now.

    Args:
        make: makes a worker, on its node.
        tasks: the tasks.
        config: settings of the cluster and its workers.
        on_report: called with the report of each task.
        paths: paths that the tasks read or write. If any is relative, workers get the working directory of this
            process.
        on_worker_death: gives the tasks to do instead of one that ended its worker, for the reason given. It must see
            to it that this does not go on for ever.
        decode_workers: actors of one core each that every worker starts for its decoding, if there is room.

    Raises:
        ConfigError: no cluster, one of another version, or one with too little room.
        ASRDogeError: as the worker raises, or `on_worker_death`; or workers cannot start, or nothing can be done now.
    """
    if not tasks:
        return []
    ray = _import_ray()
    fewest, most = config.worker_range()
    with _connected(ray, config):
        _note_room(ray, config, fewest, decode_workers)
        is_relative = any(path is not None and not is_url(str(path)) and not Path(path).is_absolute() for path in paths)
        pool = _Pool(ray, make, config, str(Path.cwd()) if is_relative else None, on_worker_death)
        try:
            return pool.run(tasks, on_report, fewest, most)
        finally:
            pool.dismiss()


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise ConfigError("--engine ray needs Ray: pip install 'asr-doge[ray]'") from None
    return ray


@contextmanager
def _connected(ray: Any, config: EngineConfig) -> Iterator[None]:
    """A connection to the cluster, for as long as the job takes; one that exists is used and left."""
    if ray.is_initialized():
        yield
        return
    address = config.ray_address
    _check_answers(address)
    local: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    if local:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except Exception as error:
        token = "" if "RAY_AUTH_MODE" in os.environ else "; if it wants a token, export RAY_AUTH_MODE=token"
        raise ConfigError(f"--ray_address {address}: {_line(error)}{token}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Refuse at once an address at which nobody listens: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise ConfigError(
            f"--ray_address {address}: no cluster answers there ({error}): start one with `ray start --head`, or"
            " correct the address"
        ) from None


def _fitting(ray: Any, config: EngineConfig) -> list[int]:
    """Workers that each node of the cluster has room for."""

    def count(resources: dict[str, float]) -> int:
        fits = math.floor(resources.get("CPU", 0.0) / config.num_cpus_per_worker + 1e-6)
        if config.num_gpus_per_worker:
            fits = min(fits, math.floor(resources.get("GPU", 0.0) / config.num_gpus_per_worker + 1e-6))
        return fits

    return [count(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def _note_room(ray: Any, config: EngineConfig, fewest: int, decode_workers: int) -> None:
    """Say what would be left without the largest node, and whether the workers leave room for those that decode."""
    fits = _fitting(ray, config)
    left = sum(fits) - max(fits, default=0)
    if len(fits) > 1 and sum(fits) >= fewest > left:
        print(f"note: if the largest node is lost, there is room for {left} workers of {fewest}", file=sys.stderr)
    cores = sum(node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"])
    needed = fewest * (config.num_cpus_per_worker + decode_workers)
    if decode_workers and cores < needed:
        print(
            f"note: {fewest} workers and {decode_workers} decode workers of each take {needed:g} cores, and the cluster"
            f" has {cores:g}: where none is free, workers decode by themselves",
            file=sys.stderr,
        )


@dataclass(frozen=True)
class _Call(Generic[Task]):
    """A remote call of a worker: a task, or None while it starts.

    Attributes:
        false_starts: workers that failed in this place before it without beginning a task.
        has_place: whether it has been placed on a node.
    """

    actor: Any
    task: Task | None
    false_starts: int
    has_place: bool = True


class _Pool(Generic[Task]):
    """Workers on a cluster, each with one task at a time."""

    def __init__(
        self,
        ray: Any,
        make: Callable[[], Worker[Task]],
        config: EngineConfig,
        folder: str | None,
        on_worker_death: Callable[[Task, str], Sequence[Task]],
    ) -> None:
        self._ray, self._make, self._config, self._folder = ray, make, config, folder
        self._on_worker_death = on_worker_death
        self._waiting: deque[Task] = deque()
        self._calls: dict[Any, _Call[Task]] = {}
        self._told: set[str] = set()
        options = {"num_cpus": config.num_cpus_per_worker, "num_gpus": config.num_gpus_per_worker}
        self._actor = ray.remote(RemoteWorker).options(max_restarts=0, max_task_retries=0, **options)

    def run(self, tasks: Sequence[Task], on_report: Callable[[Any], None], fewest: int, most: int) -> list[str]:
        """Run all tasks; returns the reasons of those that were left."""
        self._waiting.extend(tasks)
        wanted, count = min(fewest, len(tasks)), min(most, len(tasks))
        retry_limit: RetryLimit[Task] = RetryLimit(count)
        since = time.monotonic()
        for _ in range(count):
            self._hire()
        while self._waiting or any(call.task is not None for call in self._calls.values()):
            ready, _ = self._ray.wait(list(self._calls), num_returns=1, timeout=_LOOK_SECONDS)
            for ref in ready:
                self._end(ref, on_report, retry_limit)
            if self._placed >= wanted:  # to load a model may take its time
                wanted, since = 1, time.monotonic()
            elif self._waiting and time.monotonic() - since > self._config.wait_for_workers:
                raise self._too_few(fewest)
        return retry_limit.left

    @property
    def _placed(self) -> int:
        return sum(call.has_place for call in self._calls.values())

    def dismiss(self) -> None:
        """End all workers."""
        for call in self._calls.values():
            self._dismiss(call.actor)
        self._calls.clear()

    def _hire(self, false_starts: int = 0) -> None:
        actor = self._actor.remote(self._make, self._folder)
        self._calls[actor.arrive.remote()] = _Call(actor, None, false_starts, has_place=False)

    def _dismiss(self, actor: Any) -> None:
        with suppress(Exception):  # it may be gone, and its node with it
            self._ray.kill(actor)

    def _end(self, ref: Any, on_report: Callable[[Any], None], retry_limit: RetryLimit[Task]) -> None:
        """Take the result of a call, and give its worker the next task, or hire another in its place."""
        call = self._calls.pop(ref)
        try:
            result = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            self._dismiss(call.actor)
            self._replace(call, error, retry_limit)
            return
        if not call.has_place:
            check_version(*result)
            self._calls[call.actor.start.remote()] = _Call(call.actor, None, call.false_starts)
            return
        if call.task is not None:
            retry_limit.note_success()
            on_report(result)
        elif result is not None and result not in self._told:  # of many workers, one line
            self._told.add(result)
            print(f"note: {result}", file=sys.stderr)
        if self._waiting:
            task = self._waiting.popleft()
            is_last = retry_limit.is_last_try(task)
            self._calls[call.actor.run.remote(task, is_last)] = _Call(call.actor, task, 0)
        else:
            self._dismiss(call.actor)

    def _replace(self, call: _Call[Task], error: Exception, retry_limit: RetryLimit[Task]) -> None:
        """Hire a worker in the place of one that failed, unless the job must stop."""
        cause = getattr(error, "cause", None)
        if isinstance(cause, TransientError) and call.task is not None:
            if retry_limit.may_retry(call.task, cause):
                self._waiting.append(call.task)
            self._hire()  # to start takes it a while, in which others may do the task
            return
        if isinstance(cause, ASRDogeError):
            raise cause from None
        defect = cause if isinstance(cause, Exception) and not isinstance(cause, StageError) else None
        reason = f"{type(defect).__name__}: {defect}" if defect is not None else str(cause or error)
        if call.task is None:
            if call.false_starts + 1 >= MOST_FALSE_STARTS:
                raise DataError(f"{MOST_FALSE_STARTS} workers could not start, the last one for {_line(error)}")
            note_failure(reason, "another is started in its place")
            self._hire(call.false_starts + 1)
            return
        if defect is not None:
            raise defect
        tasks = self._on_worker_death(call.task, reason)
        note_failure(reason, "its task is tried again" if tasks else "its task is given up")
        self._waiting.extendleft(tasks)
        self._hire()

    def _too_few(self, fewest: int) -> ConfigError:
        config = self._config
        each = f"{config.num_cpus_per_worker:g} CPU and {config.num_gpus_per_worker:g} GPU"
        fits = _fitting(self._ray, config)
        return ConfigError(
            f"--workers {config.workers}: {self._placed} of at least {fewest} workers could be started in"
            f" {config.wait_for_workers:g} s; the cluster's {len(fits)} nodes have room for {sum(fits)} of {each}:"
            " add nodes, lower the numbers, or wait longer with --wait_for_workers"
        )


class RemoteWorker:
    """A worker in a process of the cluster.

    Args:
        make: makes the worker.
        folder: working directory; None for any.
    """

    def __init__(self, make: Callable[[], Worker[Any]], folder: str | None) -> None:
        self._make, self._folder = make, folder
        self._worker: Worker[Any] | None = None

    def arrive(self) -> tuple[str, str]:
        """Take its place; returns the name of its node, and the version of this package there."""
        if self._folder is not None:
            try:
                os.chdir(self._folder)
            except OSError as error:
                raise ConfigError(
                    f"{self._folder} is not on node {socket.gethostname()} ({error.strerror}): share it among the"
                    " nodes, or give absolute paths or URLs"
                ) from None
        return socket.gethostname(), version("asr-doge")

    def start(self) -> str | None:
        """Load what the worker needs; returns what the user should know, if anything."""
        self._worker = self._make()
        return self._worker.start()

    def run(self, task: Any, is_last: bool) -> Any:
        """Do a task."""
        assert self._worker is not None
        return self._worker.run(task, is_last)


def check_version(node: str, there: str) -> None:
    """Refuse a node that has another version of this package.

    Raises:
        ConfigError: it has.
    """
    here = version("asr-doge")
    if there != here:
        raise ConfigError(f"node {node} has asr-doge {there}, and this machine {here}: install the same on all")


def _line(error: BaseException) -> str:
    """The message of an error, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])[:300] or type(error).__name__
