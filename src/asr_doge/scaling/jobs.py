"""Run a job from its settings to its summary: list its items, divide them into shards, run an engine, count.

Promises: the same command continues a job that was stopped; finished shards are kept whatever stops the others; every
recording ends as one line of the output, a text or an error, and those with errors are named in the summary.
"""

import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

from asr_doge.data.sharding import parse_shard
from asr_doge.errors import ConfigError, DataError
from asr_doge.progress import progress_bar
from asr_doge.scaling.configuration import TranscribeJobConfig
from asr_doge.scaling.engines import TransientError, run_here
from asr_doge.scaling.items import Item, import_parquet, list_items
from asr_doge.scaling.metrics import Metrics
from asr_doge.scaling.planning import Plan, plan_job
from asr_doge.scaling.shard_worker import Shard, ShardWorker
from asr_doge.scaling.shards import Job, JobFolder, ShardReport, source_digest

_SAMPLED_BYTES = 1 << 16
MOST_DEATHS = 4
"""Workers in a row that may die at a shard without any progress in it."""


@dataclass(frozen=True)
class JobSummary:
    """Summary of a job, or of one process's part of it, so far.

    Attributes:
        shards, finished: number of shards in the job, and of those that are complete.
        transcribed, incomplete: recordings with a text, and of these the damaged ones.
        failed: name and reason of each other recording.
        left: reasons of shards that could not be done this time; the same command tries them again.
        audio_hours: length of the transcribed ones.
        seconds: time of this run.
        times_real_time: audio in the shards that this run finished, over its time.
    """

    shards: int
    finished: int
    transcribed: int
    incomplete: int
    failed: list[tuple[str, str]]
    left: list[str]
    audio_hours: float
    seconds: float
    times_real_time: float


def describe_job(config: TranscribeJobConfig, items: Sequence[Item]) -> Job:
    """The job that a command describes."""
    return Job(
        "transcribe",
        model_digest(config.model),
        config.text_settings(),
        source_digest(items),
        len(items),
        config.shard_size,
        version("asr-doge"),
        config.shard_format,
    )


def model_digest(model: str) -> str:
    """Identity of a model, the same on every machine: a name, or for a folder a digest of its files.

    Of each file the size and both ends count, so that gigabytes need not be read.
    """
    folder = Path(model)
    if not folder.is_dir():
        return model
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            size = path.stat().st_size
            digest.update(f"{path.relative_to(folder).as_posix()} {size}\n".encode(errors="replace"))
            with path.open("rb") as file:
                digest.update(file.read(_SAMPLED_BYTES))
                file.seek(max(size - _SAMPLED_BYTES, 0))
                digest.update(file.read(_SAMPLED_BYTES))
    return digest.hexdigest()[:16]


MakeWorker = Callable[[TranscribeJobConfig, JobFolder], ShardWorker]


def _transcribe_worker(config: TranscribeJobConfig, folder: JobFolder) -> ShardWorker:
    from asr_doge.scaling.transcribing import TranscribeWorker  # here, since it loads torch

    return TranscribeWorker(config, folder)


def run_transcribe_job(config: TranscribeJobConfig, make_worker: MakeWorker = _transcribe_worker) -> JobSummary:
    """Transcribe in shards, on the configured engine.

    Args:
        config: of the command.
        make_worker: what makes a worker, on the machine where it is to work.

    Raises:
        ConfigError: settings that do not go together.
        DataError: the sources cannot be listed, or the output is of another job or cannot be written.
        CheckpointError: the model cannot be loaded.
    """
    config.check_job()
    if config.shard_format == "parquet":
        import_parquet("--format parquet")
    part = parse_shard(config.shard)
    items, job = _listed(config)
    assert config.output_dir is not None
    folder = JobFolder(config.output_dir, job)
    if config.overwrite:
        folder.clear()
    folder.claim()
    mine = range(part.index, job.num_shards + 1, part.count)
    known, notes = folder.finished(mine)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    tasks = [Shard(number, tuple(job.shard(items, number))) for number in mine if number not in known]
    if known:
        print(f"{len(known)} of {job.num_shards} shards are complete already", file=sys.stderr)
    begin = time.perf_counter()
    done: list[ShardReport] = []
    left = _run(config, folder, partial(make_worker, config, folder), tasks, done)
    seconds = time.perf_counter() - begin
    reports = folder.finished()[0]
    summary = _summary(job, [reports[number] for number in sorted(reports)], done, left, seconds)
    if summary.finished == summary.shards:
        if summary.transcribed + len(summary.failed) != job.count:
            raise DataError(
                f"{config.output_dir} holds {summary.transcribed + len(summary.failed)} lines, not one for each of"
                f" {job.count} recordings: run again with --overwrite"
            )
        folder.write_summary(asdict(summary))
    return summary


def plan_transcribe_job(config: TranscribeJobConfig, make_worker: MakeWorker = _transcribe_worker) -> Plan:
    """Estimate the size and cost of a job; arguments and errors as of `run_transcribe_job`."""
    config.check_job()
    items, job = _listed(config)
    here = replace(config, decode_workers=0)
    worker = make_worker(here, JobFolder(config.output_dir or "plan", job))
    worker.start()
    try:
        return plan_job(config, items, job.num_shards, worker)
    except ValueError as error:
        raise DataError(f"{config.files[0]}: {error}") from None
    finally:
        worker.close()


def _listed(config: TranscribeJobConfig) -> tuple[list[Item], Job]:
    items = list_items(config.files)
    if not items:
        raise ConfigError("nothing to transcribe: give files, folders, manifests or URLs")
    return items, describe_job(config, items)


def _run(
    config: TranscribeJobConfig,
    folder: JobFolder,
    make: Callable[[], ShardWorker],
    tasks: Sequence[Shard],
    done: list[ShardReport],
) -> list[str]:
    """Process shards, with a progress bar; returns the reasons of those that were left."""
    failures = 0
    begin = time.perf_counter()
    metrics = Metrics(len(tasks)) if config.engine == "ray" else None
    with progress_bar(total=sum(len(task.items) for task in tasks), desc="transcribing", unit="rec") as bar:

        def report(one: ShardReport) -> None:
            nonlocal failures
            with suppress(TransientError):  # what is there is looked at again at the end
                if folder.is_finished(one.number) is None:
                    raise DataError(
                        f"shard {one.number} was written to {folder.url} on another machine and is not there on this"
                        " one: give a folder that all share, or a URL"
                    )
            done.append(one)
            failures += len(one.failures)
            hours = sum(each.audio_seconds for each in done) / 3600
            rate = 3600 * hours / max(time.perf_counter() - begin, 1e-9)
            bar.set_postfix_str(f"{hours:.2f} h, {rate:.0f} × real time, {failures} failed", refresh=False)
            bar.update(one.transcribed + len(one.failures))
            if metrics is not None:
                metrics.count(one)

        if config.engine == "ray":
            from asr_doge.scaling.ray_engine import run_on_ray  # here, since Ray is an extra

            model = config.model if Path(config.model).is_dir() else None
            paths = [config.output_dir, config.hotwords, model, *(item.url for task in tasks for item in task.items)]
            return run_on_ray(make, tasks, config, report, paths, CrashLimit(folder).retry, config.decode_workers)
        return run_here(make, tasks, report)


class CrashLimit:
    """Limits how many workers a shard may end.

    A recording that does is given up in the end (see `asr_doge.scaling.shard_worker`), and every attempt is noted
    before it is begun. So a shard that ends worker after worker and of which nothing new is noted would go on for ever.

    Args:
        folder: of the job.
    """

    def __init__(self, folder: JobFolder) -> None:
        self._folder = folder
        self._known: dict[int, tuple[tuple[int, int] | None, int]] = {}

    def retry(self, shard: Shard, reason: str) -> list[Shard]:
        """The tasks to do instead of a shard that ended its worker: the shard itself.

        Raises:
            DataError: it ended `MOST_DEATHS` workers in a row without making progress.
        """
        attempts = None
        with suppress(TransientError):
            attempts = self._folder.attempts(shard.number)
        state = None if attempts is None else (len(attempts.lines), attempts.tried)
        before, deaths = self._known.get(shard.number, (state, 0))
        deaths = deaths + 1 if state == before else 1
        if deaths >= MOST_DEATHS:
            raise DataError(
                f"shard {shard.number} ended {deaths} workers in a row and came no further, at last with"
                f" {reason.splitlines()[0] if reason else 'no reason given'}: give workers more memory, or --shard_size"
                " fewer recordings"
            )
        self._known[shard.number] = state, deaths
        return [shard]


def _summary(
    job: Job, reports: Sequence[ShardReport], done: Sequence[ShardReport], left: list[str], seconds: float
) -> JobSummary:
    audio = sum(report.audio_seconds for report in done)
    return JobSummary(
        job.num_shards,
        len(reports),
        sum(report.transcribed for report in reports),
        sum(report.incomplete for report in reports),
        [failure for report in reports for failure in report.failures],
        left,
        round(sum(report.audio_seconds for report in reports) / 3600, 4),
        round(seconds, 1),
        round(audio / seconds, 1) if seconds else 0.0,
    )
