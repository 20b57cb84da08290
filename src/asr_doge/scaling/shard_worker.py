"""A worker's way with a shard: from its recordings, through decoders that it starts and ends, to its committed lines.

Promises: finished lines of a shard under way are stored durably every little while, so that whoever goes on with it
does the rest only. If its worker died or failed, that is done one recording at a time, and each is noted durably before
it is begun: one that ends its worker `max_attempts` times is given up, with a line that says so, and its neighbours
keep theirs. A recording that ends its decoder is no such case: it fails by itself (see
`asr_doge.scaling.opening`). One that cannot be fetched leaves the whole shard undone, since the store may be at fault.
It knows neither engine nor model, and loads no torch.
"""

import json
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil

from asr_doge.errors import ASRDogeError, AudioError, DataError
from asr_doge.inference.output import Result, json_line
from asr_doge.inference.results import FailedTranscription
from asr_doge.scaling.configuration import TranscribeJobConfig
from asr_doge.scaling.decode_workers import SharedReader, Take, item_reader
from asr_doge.scaling.engines import StageError, TransientError
from asr_doge.scaling.items import DeniedError, FetchError, Item
from asr_doge.scaling.opening import Reading
from asr_doge.scaling.shards import Attempts, JobFolder, ShardReport

MOST_GIVEN_UP = 10
"""Recordings given up one after another that stop the job: the fault is then hardly theirs."""
MOST_DOUBTS = 2
"""Attempts beyond `max_attempts` at a recording whose last one may be going on, on another machine."""
_CLOCK_SECONDS = 60.0
"""By which a process may seem to have started earlier or later, since clocks are set."""


@dataclass(frozen=True)
class Shard:
    """A shard to be done: its number, from 1, and its items."""

    number: int
    items: tuple[Item, ...]


class ShardWorker(ABC):
    """Does shards, one after another.

    Args:
        config: of the command.
        folder: of the job.

    Attributes:
        storing_share: share of its time in which a worker may store finished lines of a shard under way.
    """

    storing_share = 0.02

    def __init__(self, config: TranscribeJobConfig, folder: JobFolder) -> None:
        self.config, self.folder = config, folder
        self._reader: SharedReader | None = None
        self._may_fail_denied = False
        self._denied = ""

    def start(self) -> None:
        """Start the decoders, and load what else the worker needs."""
        self._reader = item_reader(self.config)

    def decode_with(self, decode_workers: Sequence[Take]) -> None:
        """Have recordings decoded by these from now on."""
        assert self._reader is not None, "start the worker first"
        self._reader.use(decode_workers)

    @abstractmethod
    def results(self, items: Sequence[Item]) -> Iterator[Result]:
        """What becomes of each recording, in order."""

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

        On the last try a recording that its store denies fails alone, if others of the shard could be transcribed.

        Raises:
            TransientError: the output cannot be written, or a recording cannot be fetched.
            StageError: a stage raised something else; whoever runs the shard next takes its recordings one by one.
            DataError: recordings fail one after another.
        """
        done = self.folder.is_finished(shard.number)
        if done is not None:
            return done
        self._may_fail_denied, self._denied = is_last, ""
        begin = time.perf_counter()
        attempts = self.folder.attempts(shard.number) or Attempts(is_paused=True)
        report = ShardReport(shard.number)
        for line, item in zip(attempts.lines, shard.items, strict=False):
            self._count(line, item, report)
        take = self._at_once if attempts.is_paused else self._one_by_one
        take(shard, attempts, report)
        report.work_seconds = round(time.perf_counter() - begin, 3)
        return self.folder.commit(report, attempts.lines)

    def _at_once(self, shard: Shard, attempts: Attempts, report: ShardReport) -> None:
        """Add the lines that are missing of a shard of which nothing is suspected."""
        attempts.is_paused = False  # in case this process dies
        self.folder.note_attempt(shard.number, attempts)
        due = 0.0
        try:
            for line in self._lines(shard.items[len(attempts.lines) :], report):
                attempts.lines.append(line)
                if time.monotonic() >= due and not self._is_all_denied(report):
                    due = self._store(shard, attempts)
            if self._is_all_denied(report):
                raise TransientError(self._denied)
        except (KeyboardInterrupt, TransientError, StageError) as error:
            attempts.is_paused = not isinstance(error, StageError)  # which may be a recording's fault
            if self._is_all_denied(report):
                attempts.lines.clear()
            with suppress(TransientError):
                if attempts.is_paused and not attempts.lines:
                    self.folder.forget_attempt(shard.number)
                else:
                    self.folder.note_attempt(shard.number, attempts)
            raise

    def _store(self, shard: Shard, attempts: Attempts) -> float:
        """Store the lines of a shard under way, if that can be done now; returns when to store more."""
        begin = time.monotonic()
        with suppress(TransientError):
            self.folder.note_attempt(shard.number, attempts)
        end = time.monotonic()
        return end + (end - begin) / self.storing_share

    def _lines(self, items: Sequence[Item], report: ShardReport) -> Iterator[str]:
        """A line for each recording, in order."""
        try:
            for item, result in zip(items, self.results(items), strict=True):
                yield self._line(item, result, report)
        except ASRDogeError:
            raise
        except Exception as error:
            first = (str(error) or "no reason given").splitlines()[0]
            raise StageError(f"{type(error).__name__}: {first}") from error

    def _is_all_denied(self, report: ShardReport) -> bool:
        """Whether recordings were denied and none could be transcribed: the fault is then the keys', not theirs."""
        return bool(self._denied) and not report.transcribed

    def _line(self, item: Item, result: Result, report: ShardReport) -> str:
        if isinstance(result, FailedTranscription):
            if isinstance(result.error, FetchError):
                reason = f"{result.error} Shard {report.number} is left until it can be."
                if not self._may_fail_denied or not isinstance(result.error, DeniedError):
                    raise TransientError(reason)
                self._denied = self._denied or reason
            report.failures.append((item.title, str(result.error)))
        else:
            report.transcribed += 1
            report.incomplete += result.incomplete is not None
            report.audio_seconds = round(report.audio_seconds + result.duration, 3)
        others = {"path": item.name} | ({"offset": item.offset} if item.is_part else {})
        return json_line(result, self.config.model, others)

    def _one_by_one(self, shard: Shard, attempts: Attempts, report: ShardReport) -> None:
        """Add the lines that are missing of a shard that ended its worker."""
        is_last = self._may_fail_denied
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
                line = self._line(item, FailedTranscription(error), report)
            else:
                attempts.tried, attempts.reason, attempts.owner = attempts.tried + 1, None, _this_process()
                self.folder.note_attempt(shard.number, attempts)
                self._may_fail_denied = is_last and report.transcribed > 0  # lines are noted, so none is taken back
                line = self._tried(shard, item, attempts, report)
                attempts.given_up = 0
            attempts.lines.append(line)
            attempts.tried, attempts.reason = 0, None

    def _is_poison(self, attempts: Attempts) -> bool:
        """Whether the next recording has had its attempts, and the last one is over as far as can be known."""
        if attempts.tried < self.config.max_attempts:
            return False
        is_over = attempts.reason is not None or _has_ended(attempts.owner)
        return is_over or attempts.tried >= self.config.max_attempts + MOST_DOUBTS

    def _tried(self, shard: Shard, item: Item, attempts: Attempts, report: ShardReport) -> str:
        """The line of one recording by itself."""
        try:
            (line,) = self._lines([item], report)
        except (StageError, TransientError, KeyboardInterrupt) as error:
            if isinstance(error, StageError):
                attempts.reason = str(error)
            else:  # no fault of its
                attempts.tried -= 1
            self.folder.note_attempt(shard.number, attempts)
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
