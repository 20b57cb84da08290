"""Process a shard in a worker: decode its recordings, get their results, and commit the lines of the output.

Promises: finished lines of an unfinished shard are stored durably at short intervals, so that another worker needs to
do the rest only. If a worker died or failed, the rest is done one recording at a time, and each is noted durably before
it is begun: one that ends its worker `max_attempts` times is given up, with a line that says so, and its neighbours
keep theirs. A recording that crashes its decoder only fails itself (see `asr_doge.scaling.item_reading`). One that
cannot be fetched leaves the whole shard undone, since the store may be at fault. It knows neither engine nor model, and
loads no torch.
"""

import json
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import psutil

from asr_doge.errors import ASRDogeError, AudioError, DataError
from asr_doge.inference.output import Result, json_line
from asr_doge.inference.results import FailedTranscription
from asr_doge.scaling.configuration import TranscribeJobConfig
from asr_doge.scaling.engines import StageError, TransientError
from asr_doge.scaling.item_reading import ItemReader, Reading, can_fetch, item_reader, store_of
from asr_doge.scaling.items import DeniedError, FetchError, Item
from asr_doge.scaling.shards import Attempts, JobFolder, ShardReport

MOST_GIVEN_UP = 10
"""Recordings given up in a row that stop the job: the fault is then hardly theirs."""
MOST_DOUBTS = 2
"""Attempts beyond `max_attempts` at a recording whose last attempt may still be running on another machine."""
_MOST_PROBES = 3
"""Recordings of a store that are requested again, to see whether its credentials are still valid."""
_CLOCK_SECONDS = 60.0
"""Tolerance when start times of a process are compared, since clocks are adjusted."""


@dataclass(frozen=True)
class Shard:
    """A shard to process: its number, from 1, and its items."""

    number: int
    items: tuple[Item, ...]


class ShardWorker(ABC):
    """Processes shards, one after another.

    Args:
        config: the command's.
        folder: the job's.

    Attributes:
        storing_share: share of its time in which a worker may store finished lines of a shard under way.
    """

    storing_share = 0.02

    def __init__(self, config: TranscribeJobConfig, folder: JobFolder) -> None:
        self.config, self.folder = config, folder
        self._reader: ItemReader | None = None
        self._is_last = False
        self._begin = 0.0

    def start(self) -> str | None:
        """Start the decoders and load what else the worker needs; returns a note for the user, if any."""
        self._reader = item_reader(self.config)
        return self._reader.start()

    @abstractmethod
    def results(self, items: Sequence[Item]) -> Iterator[Result]:
        """The result of each recording, in order."""

    def close(self) -> None:
        """End the decoders."""
        if self._reader is not None:
            self._reader.close()

    def read_ahead(self, items: Sequence[Item]) -> Iterator[Reading]:
        """Each item's recording, in order, while those after it are decoded."""
        assert self._reader is not None, "start the worker first"
        return self._reader.read_ahead(items)

    def run(self, shard: Shard, is_last: bool = False) -> ShardReport:
        """Do a shard, unless it is done already, and commit it.

        On the last try a recording that its store denies fails alone, if the store still gives out another one of the
        shard that has its text; else the keys are at fault, and its line and those after it are not kept.

        Raises:
            TransientError: the output cannot be written, or a recording cannot be fetched.
            StageError: a stage raised something else; whoever runs the shard next takes its recordings one by one.
            DataError: recordings fail one after another.
        """
        done = self.folder.is_finished(shard.number)
        if done is not None:
            return done
        attempts = self.folder.attempts(shard.number) or Attempts(is_paused=True)
        self._is_last, self._begin = is_last, time.perf_counter() - attempts.work_seconds
        report = ShardReport(shard.number)
        for line, item in zip(attempts.lines, shard.items, strict=False):
            self._count(line, item, report)
        take = self._at_once if attempts.is_paused else self._one_by_one
        take(shard, attempts, report)
        report.work_seconds = self._seconds()
        return self.folder.commit(report, attempts.lines)

    def _at_once(self, shard: Shard, attempts: Attempts, report: ShardReport) -> None:
        """Add the lines that are missing of a shard of which nothing is suspected."""
        attempts.is_paused = False  # in case this process dies
        self._note(shard, attempts)
        due = 0.0
        try:
            for line in self._lines(shard.items[len(attempts.lines) :], attempts, report):
                attempts.lines.append(line)
                if time.monotonic() >= due:
                    due = self._store(shard, attempts)
            self._check_denied(shard, attempts)
        except (KeyboardInterrupt, TransientError, StageError) as error:
            attempts.is_paused = not isinstance(error, StageError)  # which may be a recording's fault
            self._leave(shard, attempts)
            raise

    def _leave(self, shard: Shard, attempts: Attempts) -> None:
        """Store the progress of a shard that is left, up to the first recording to which access was denied."""
        if attempts.denied:
            del attempts.lines[attempts.denied[0] :]
            attempts.denied, attempts.tried, attempts.reason, attempts.given_up = [], 0, None, 0
        with suppress(TransientError):
            if attempts.is_paused and not attempts.lines:
                self.folder.forget_attempt(shard.number)
            else:
                self._note(shard, attempts)

    def _note(self, shard: Shard, attempts: Attempts) -> None:
        attempts.work_seconds = self._seconds()
        self.folder.note_attempt(shard.number, attempts)

    def _seconds(self) -> float:
        """Time that the shard took so far, in all tries whose lines are kept."""
        return round(time.perf_counter() - self._begin, 3)

    def _store(self, shard: Shard, attempts: Attempts) -> float:
        """Store the lines of a shard under way, if that can be done now; returns when to store more."""
        begin = time.monotonic()
        kept = attempts.lines[: attempts.denied[0]] if attempts.denied else attempts.lines
        with suppress(TransientError):
            self._note(shard, replace(attempts, lines=kept, denied=[]))
        end = time.monotonic()
        return end + (end - begin) / self.storing_share

    def _lines(self, items: Sequence[Item], attempts: Attempts, report: ShardReport) -> Iterator[str]:
        """A line for each recording, in order."""
        try:
            for item, result in zip(items, self.results(items), strict=True):
                yield self._line(item, result, attempts, report)
        except ASRDogeError:
            raise
        except Exception as error:
            first = (str(error) or "no reason given").splitlines()[0]
            raise StageError(f"{type(error).__name__}: {first}") from error

    def _check_denied(self, shard: Shard, attempts: Attempts) -> None:
        """Make sure that recordings were denied by themselves, and not since keys have expired meanwhile.

        Raises:
            TransientError: their store gives out nothing else of the shard now.
        """
        for store in {store_of(shard.items[place]) for place in attempts.denied}:
            done = [
                item
                for item, line in zip(shard.items, attempts.lines, strict=True)
                if store_of(item) == store and "error" not in json.loads(line)
            ]
            if not any(can_fetch(item) for item in done[-_MOST_PROBES:]):
                reason = json.loads(attempts.lines[attempts.denied[0]])["error"]
                raise TransientError(_left(reason, shard.number))

    def _line(self, item: Item, result: Result, attempts: Attempts, report: ShardReport) -> str:
        if isinstance(result, FailedTranscription):
            if isinstance(result.error, FetchError):
                if not self._is_last or not isinstance(result.error, DeniedError):
                    raise TransientError(_left(str(result.error), report.number))
                attempts.denied.append(len(attempts.lines))
            report.failures.append((item.title, str(result.error)))
        else:
            report.transcribed += 1
            report.incomplete += result.incomplete is not None
            report.audio_seconds = round(report.audio_seconds + result.duration, 3)
        others = {"path": item.name} | ({"offset": item.offset} if item.is_part else {})
        return json_line(result, self.config.model, others)

    def _one_by_one(self, shard: Shard, attempts: Attempts, report: ShardReport) -> None:
        """Add the lines that are missing of a shard that ended its worker."""
        for item in shard.items[len(attempts.lines) :]:
            if self._is_poison(attempts):
                attempts.given_up += 1
                if attempts.given_up > MOST_GIVEN_UP:
                    raise DataError(
                        f"{attempts.given_up} recordings in a row were given up; the last, {item.name}:"
                        f" {_reason(attempts)}."
                        " The fault is hardly theirs: mend it, remove the shard's .attempts.json, and run again"
                    )
                error = AudioError(f"{item.name} was given up after attempt {attempts.tried}: {_reason(attempts)}.")
                line = self._line(item, FailedTranscription(error), attempts, report)
            else:
                attempts.tried, attempts.reason, attempts.owner = attempts.tried + 1, None, _this_process()
                self._note(shard, attempts)
                line = self._tried(shard, item, attempts, report)
                attempts.given_up = 0
            attempts.lines.append(line)
            attempts.tried, attempts.reason = 0, None
        try:
            self._check_denied(shard, attempts)
        except TransientError:
            self._leave(shard, attempts)
            raise

    def _is_poison(self, attempts: Attempts) -> bool:
        """Whether the next recording has had its attempts, and the last one is over as far as can be known."""
        if attempts.tried < self.config.max_attempts:
            return False
        is_over = attempts.reason is not None or _has_ended(attempts.owner)
        return is_over or attempts.tried >= self.config.max_attempts + MOST_DOUBTS

    def _tried(self, shard: Shard, item: Item, attempts: Attempts, report: ShardReport) -> str:
        """The line of one recording by itself."""
        try:
            (line,) = self._lines([item], attempts, report)
        except StageError as error:
            attempts.reason = str(error)
            self._note(shard, attempts)
            raise
        except (TransientError, KeyboardInterrupt):
            attempts.tried -= 1  # no fault of its
            self._leave(shard, attempts)
            raise
        return line

    def _count(self, line: str, item: Item, report: ShardReport) -> None:
        """Count a line that an earlier attempt wrote."""
        entry = json.loads(line)
        if "error" in entry:
            report.failures.append((item.title, entry["error"]))
        else:
            report.transcribed += 1
            report.incomplete += "incomplete" in entry
            report.audio_seconds = round(report.audio_seconds + entry["duration"], 3)


def _left(reason: str, number: int) -> str:
    return f"{reason} Shard {number} is left until it can be."


def _reason(attempts: Attempts) -> str:
    return attempts.reason or "its worker died, perhaps for want of memory"


def _this_process() -> str:
    process = psutil.Process()
    return f"{socket.gethostname()} {process.pid} {process.create_time()}"


def _has_ended(owner: str) -> bool:
    """Whether a process was on this machine and is no longer: of others that cannot be known."""
    host, pid, created = owner.rsplit(" ", 2)
    if host != socket.gethostname():
        return False
    try:
        process = psutil.Process(int(pid))
        is_another = abs(process.create_time() - float(created)) > _CLOCK_SECONDS
        return is_another or process.status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True
