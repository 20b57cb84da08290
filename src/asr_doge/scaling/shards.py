"""The output folder of a job: the job it belongs to, its shards, and which of them are complete.

Promises: a shard counts only with its completion marker, written last, of the same job, beside a file of the size it
states; the file and the marker are each written completely or not at all, also on object stores, which lock nothing. A
job of another model, of other settings or recordings is refused. A shard has the same recordings in the same order,
whoever writes it and however often, so two processes on one folder waste time, but no recording is there twice. A file
that cannot be read or written is a `TransientError`. It does not know what is in a line.

A job of 3 shards leaves `job.json`, `transcripts-00001-of-00003.jsonl` with `transcripts-00001-of-00003.done.json`
and so on, and, when it is complete, `summary.json`. An `.attempts.json` has the progress of an unfinished shard.
"""

import hashlib
import json
import math
import random
import re
import time
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from asr_doge.data.stores import is_url, open_store
from asr_doge.errors import DataError
from asr_doge.scaling.configuration import ShardFormat
from asr_doge.scaling.engines import TransientError
from asr_doge.scaling.items import Item
from asr_doge.scaling.shard_encoding import encode

JOB, SUMMARY = "job.json", "summary.json"
_MOST_WRITES = 8
"""Times that a shard is written which another process replaces by another of its own at the same time."""
_LONGEST_PAUSE = 0.5
_SAME_JOB = "choose another --output_dir, or replace what is there with --overwrite"


@dataclass(frozen=True)
class Job:
    """Everything that the output of a job depends on.

    Attributes:
        kind: its command.
        model: identity of the model.
        settings: of the command, in JSON types.
        source: digest of the recordings' names and stamps.
        count: number of the recordings.
        shard_size: recordings in a shard.
        version: of this package.
        format: of the shards.
    """

    kind: str
    model: str
    settings: dict[str, Any]
    source: str
    count: int
    shard_size: int
    version: str
    format: ShardFormat = "jsonl"

    @property
    def num_shards(self) -> int:
        """Number of its shards."""
        return math.ceil(self.count / self.shard_size)

    @property
    def fingerprint(self) -> str:
        """Digest of all of it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def shard(self, items: Sequence[Item], number: int) -> list[Item]:
        """The items of a shard, from 1."""
        return list(items[(number - 1) * self.shard_size : number * self.shard_size])


def source_digest(items: Sequence[Item]) -> str:
    """Digest of items, including the stamps of their files."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps([getattr(item, one.name) for one in fields(Item)]).encode() + b"\n")
    return digest.hexdigest()[:16]


@dataclass
class ShardReport:
    """The outcome of a shard.

    Attributes:
        number: of the shard, from 1.
        transcribed: number of recordings with a text, even of a part.
        incomplete: of these, the damaged ones.
        audio_seconds: length of the transcribed ones.
        work_seconds: time of all attempts whose lines were kept.
        failures: names of the other recordings, each with the reason.
        bytes, sha256: of the file.
        fingerprint: of the job.
    """

    number: int
    transcribed: int = 0
    incomplete: int = 0
    audio_seconds: float = 0.0
    work_seconds: float = 0.0
    failures: list[tuple[str, str]] = field(default_factory=list)
    bytes: int = 0
    sha256: str = ""
    fingerprint: str = ""


@dataclass
class Attempts:
    """The progress of a shard that was begun and not finished.

    Attributes:
        lines: of the recordings that are done, one after another.
        tried: times that the next one was begun.
        reason: what became of it the last time; None if its worker died, or is at it.
        owner: the process that began it the last time.
        given_up: recordings before it that were given up one after another.
        is_paused: whether its worker left it and did not fail, so that no recording is suspected.
        denied: places of the lines of recordings that their store denied, on the last try.
        work_seconds: time that it took so far.
    """

    lines: list[str] = field(default_factory=list)
    tried: int = 0
    reason: str | None = None
    owner: str = ""
    given_up: int = 0
    is_paused: bool = False
    denied: list[int] = field(default_factory=list)
    work_seconds: float = 0.0


class JobFolder:
    """The output of a job.

    Args:
        url: a folder, or a URL for fsspec.
        job: what it is of.
    """

    def __init__(self, url: str, job: Job) -> None:
        self.url, self.job = url, job
        self._store = open_store(url)

    def clear(self) -> None:
        """Remove the files of any job in this folder."""
        for name in self._store.sizes():
            shard = r"transcripts-\d+-of-\d+\.(jsonl|parquet|done\.json|attempts\.json)"
            if name in (JOB, SUMMARY) or re.fullmatch(shard, name):
                self._store.remove(name)

    def claim(self) -> None:
        """Write `job.json`, which says what job the folder belongs to, unless it is there.

        Raises:
            DataError: it is of another job, or holds something else, or cannot be written.
        """
        with self._naming_flag():
            sizes = self._store.sizes()
        if JOB not in sizes:
            if any(name.endswith(".done.json") for name in sizes):
                raise DataError(f"{self.url} holds shards, and no {JOB} that says of what: {_SAME_JOB}")
            with (
                self._naming_flag()
            ):  # a store may let us list and not write, or only now say that it has no such bucket
                self._store.write(JOB, _json(asdict(self.job)))
        self.check()

    @contextmanager
    def _naming_flag(self) -> Iterator[None]:
        """Name `--output_dir` in the error of a store that does not work in the first steps of a job."""
        try:
            yield
        except DataError as error:
            remedy = ": check the URL and your credentials" if is_url(self.url) else ""
            raise DataError(f"--output_dir: {error}{remedy}") from error

    def check(self) -> None:
        """Refuse a folder of another job.

        Raises:
            DataError: it is of another job.
        """
        found, wanted = self._read(JOB), asdict(self.job)
        if not isinstance(found, dict):
            raise DataError(f"{self.url}/{JOB} is not that of a job: {_SAME_JOB}")
        different = [name for name, value in wanted.items() if found.get(name) != json.loads(json.dumps(value))]
        if "settings" in different and isinstance(found.get("settings"), dict):
            names = {**found["settings"], **wanted["settings"]}
            changed = [f"--{name}" for name in names if found["settings"].get(name) != wanted["settings"].get(name)]
            different[different.index("settings")] = ", ".join(changed)
        if different:
            raise DataError(f"{self.url} is of another job, which differs in {', '.join(different)}: {_SAME_JOB}")

    def name(self, number: int, ending: str | None = None) -> str:
        """File of a shard, from 1."""
        return f"transcripts-{number:05}-of-{self.job.num_shards:05}.{ending or self.job.format}"

    def finished(self, mine: Container[int] = ()) -> tuple[dict[int, ShardReport], list[str]]:
        """Reports of the complete shards, and a line on every marker of `mine` that does not hold and is removed.

        Those of other processes are left alone: such a process may be about to write the shard that it marks.
        """
        sizes = self._store.sizes()
        reports: dict[int, ShardReport] = {}
        notes = []
        for number in range(1, self.job.num_shards + 1):
            if self.name(number, "done.json") not in sizes:
                continue
            report = self._report(number)
            if report is not None and report.bytes == sizes.get(self.name(number)):
                reports[number] = report
            elif number in mine and self._store.sizes().get(self.name(number)) == sizes.get(self.name(number)):
                self._store.remove(self.name(number, "done.json"))
                notes.append(f"{self.url}/{self.name(number)} is marked complete, and is not: it is made anew")
        return reports, notes

    def is_finished(self, number: int) -> ShardReport | None:
        """The report of a shard whose marker was written since `finished`."""
        return self._report(number)

    def commit(self, report: ShardReport, lines: Sequence[str]) -> ShardReport:
        """Write a shard, then its marker; returns the report of what is there, which another process may have written.

        Raises:
            TransientError: it cannot be written.
        """
        content = encode(lines, self.job.format)
        report.bytes, report.sha256 = len(content), hashlib.sha256(content).hexdigest()
        report.fingerprint = self.job.fingerprint
        with _as_transient():
            for _ in range(_MOST_WRITES):
                self._store.write(self.name(report.number), content)
                self._store.write(self.name(report.number, "done.json"), _json(asdict(report)))
                there = self._report(report.number)
                held = self._store.content(self.name(report.number)) or b""
                if there is not None and there.sha256 == hashlib.sha256(held).hexdigest():
                    self.forget_attempt(report.number)
                    return there
                time.sleep(random.uniform(0, _LONGEST_PAUSE))  # so that two do not keep in step
        raise TransientError(
            f"{self.url}/{self.name(report.number)} is replaced again and again: end the other process"
        )

    def attempts(self, number: int) -> Attempts | None:
        """The progress of an unfinished shard; None if it was never begun."""
        found = self._read(self.name(number, "attempts.json"))
        if not isinstance(found, dict) or found.get("fingerprint") != self.job.fingerprint:
            return None
        return Attempts(**{one.name: found[one.name] for one in fields(Attempts)})

    def note_attempt(self, number: int, attempts: Attempts) -> None:
        """Store the progress of a shard durably.

        Raises:
            TransientError: it cannot be written.
        """
        known = {"fingerprint": self.job.fingerprint} | asdict(attempts)
        with _as_transient():
            self._store.write(self.name(number, "attempts.json"), _json(known))

    def forget_attempt(self, number: int) -> None:
        """Remove the progress of a shard that is not running."""
        with _as_transient():
            self._store.remove(self.name(number, "attempts.json"))

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Store the summary of a finished job."""
        self._store.write(SUMMARY, _json(summary))

    def _report(self, number: int) -> ShardReport | None:
        found = self._read(self.name(number, "done.json"))
        if not isinstance(found, dict) or found.get("fingerprint") != self.job.fingerprint:
            return None
        try:
            return ShardReport(**found | {"failures": [(name, reason) for name, reason in found["failures"]]})
        except (KeyError, TypeError, ValueError):
            return None

    def _read(self, name: str) -> Any:
        """The content of a JSON file; None if it is missing or damaged."""
        with _as_transient():
            content = self._store.content(name)
        try:
            return json.loads(content or b"null")
        except ValueError:
            return None


@contextmanager
def _as_transient() -> Iterator[None]:
    """Turn the error of a store into a TransientError, since the store may work again later."""
    try:
        yield
    except TransientError:
        raise
    except DataError as error:
        raise TransientError(str(error)) from error


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()  # ASCII, so that any file name can be written
