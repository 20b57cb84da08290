"""Estimate the size and cost of a job before it is started.

Promises: hours are those that manifests state or, where they state none, the mean of some recordings that are decoded,
times the number of all; the rate is that of this machine, on some recordings that the model transcribes. Nothing is
written. A cluster of other machines has another rate: plan on one of them.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from asr_doge.inference.output import json_line
from asr_doge.inference.results import Transcription
from asr_doge.scaling.configuration import TranscribeJobConfig
from asr_doge.scaling.items import Item
from asr_doge.scaling.shard_worker import ShardWorker

_TIMED_RECORDINGS = 32


@dataclass(frozen=True)
class Plan:
    """An estimate of a job.

    Attributes:
        recordings, shards: their numbers.
        hours: hours of audio.
        sampled: number of recordings that the estimate is based on.
        times_real_time: rate of one worker.
        line_bytes: size of one recording's line.
        workers: most workers at a time.
        gpus: GPUs of all workers.
        decode_workers: decode workers of all workers.
        price_per_hour: price of a worker.
    """

    recordings: int
    shards: int
    hours: float
    sampled: int
    times_real_time: float
    line_bytes: float
    workers: int
    gpus: float
    decode_workers: int
    price_per_hour: float

    @property
    def worker_hours(self) -> float:
        """Hours that one worker would take."""
        return self.hours / self.times_real_time

    def lines(self) -> list[str]:
        """The estimate in lines for a terminal."""
        gpu_hours = self.worker_hours * self.gpus / self.workers
        decoding = f", and {self.decode_workers:,} decode workers of a core each" if self.decode_workers else ""
        lines = [
            f"audio    {self.hours:,.2f} h in {self.recordings:,} recordings",
            f"output   {self.shards:,} shards, {self.recordings * self.line_bytes / 1e6:,.1f} MB",
            f"rate     {self.times_real_time:,.1f} × real time for a worker, as {self.sampled} of them took here",
            f"work     {self.worker_hours:,.2f} worker-hours, {gpu_hours:,.2f} GPU-hours",
            f"time     {self.worker_hours / self.workers:,.2f} h with {self.workers} workers and {self.gpus:g} GPUs"
            + decoding,
        ]
        if self.price_per_hour:
            lines.append(f"price    {self.worker_hours * self.price_per_hour:,.2f} at {self.price_per_hour:g} an hour")
        return lines


def plan_job(config: TranscribeJobConfig, items: Sequence[Item], num_shards: int, worker: ShardWorker) -> Plan:
    """Estimate a job from a sample of its recordings.

    Args:
        config: of the command.
        items: all recordings.
        num_shards: of the job.
        worker: one that is started.

    Raises:
        ValueError: none of the sampled recordings can be transcribed.
    """
    step = max(len(items) // _TIMED_RECORDINGS, 1)
    sample = list(items[::step])[:_TIMED_RECORDINGS]
    list(worker.results(sample[:1]))  # the first pass is slower
    begin = time.perf_counter()
    results = list(worker.results(sample))
    seconds = time.perf_counter() - begin
    good = [result for result in results if isinstance(result, Transcription)]
    audio = sum(result.duration for result in good)
    if not audio:
        raise ValueError("none of the sampled recordings can be transcribed")
    stated = [item.duration for item in items]
    known = sum(duration for duration in stated if duration is not None)
    unknown = sum(duration is None for duration in stated) * audio / len(good)
    line_bytes = sum(len(json_line(result, config.model)) + 1 for result in good) / len(good)
    most = min(config.worker_range()[1], num_shards)
    return Plan(
        len(items),
        num_shards,
        (known + unknown) / 3600,
        len(sample),
        audio / seconds,
        line_bytes,
        most,
        most * config.num_gpus_per_worker,
        most * config.decode_workers,
        config.price_per_hour,
    )
