"""Settings of commands that run in shards, here or on a cluster: command line, YAML and Python alike.

Promises: a docstring under every field, which is its `--help`; importing this loads neither torch nor Ray.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

from asr_doge.data.configuration import ProcessConfig
from asr_doge.errors import ConfigError
from asr_doge.inference.configuration import FeaturesConfig, TranscribeConfig

Engine = Literal["local", "ray"]
ShardFormat = Literal["jsonl", "parquet"]


@dataclass(kw_only=True)
class EngineConfig:
    """The cluster of a job, and its workers."""

    ray_address: str = "auto"
    """Address of the cluster: auto (the one that this machine is in), 10.0.0.1:6379, or local to start Ray here."""
    workers: str = "1"
    """Workers on the cluster: a number, or fewest:most. Each holds the model; as many work as there is room for."""
    num_gpus_per_worker: float = 0.0
    """GPUs that a worker gets; 0.5 lets two share one."""
    num_cpus_per_worker: float = 1.0
    """Processor cores that a worker gets, for the model and for decoding."""
    wait_for_workers: float = 120.0
    """Seconds to wait for the fewest workers, which a cluster that grows on demand needs; without them the job ends
    with an error."""

    def worker_range(self) -> tuple[int, int]:
        """Fewest and most workers.

        Raises:
            ConfigError: `workers` is not such a range, or a number cannot be used.
        """
        match = re.fullmatch(r"([0-9]+)(?::([0-9]+))?", self.workers)
        fewest, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= fewest <= most:
            raise ConfigError(f"--workers {self.workers} cannot be used: write a number, or fewest:most as in 2:8")
        if self.num_gpus_per_worker < 0 or self.num_cpus_per_worker <= 0 or self.wait_for_workers <= 0:
            raise ConfigError("--num_gpus_per_worker must be at least 0, and the other numbers of workers more than 0")
        return fewest, most


@dataclass
class ProcessJobConfig(EngineConfig, ProcessConfig):
    """Make the manifests of a corpus: measure its recordings, normalize its transcripts, and keep what is usable."""

    engine: Engine = field(default="local", kw_only=True)
    """local: this process measures the recordings. ray: workers on a Ray cluster do; each must see the corpus under the
    same path."""


@dataclass
class FeaturesJobConfig(EngineConfig, FeaturesConfig):
    """Run the frozen encoder over processed speech once and store its output, so that training need not run it."""

    engine: Engine = "local"
    """local: this process does the part that shard names. ray: workers on a Ray cluster do all parts."""


@dataclass
class TranscribeJobConfig(EngineConfig, TranscribeConfig):
    """Recordings to text. Reads WAV, FLAC, MP3, Ogg, Opus, M4A, video with sound and more, at any rate."""

    engine: Engine | None = None
    """local: in this process. ray: by workers on a Ray cluster. Either writes shards to output_dir, a folder or s3://…
    or gs://…, of JSON lines or, with format parquet, in Parquet; the same command goes on with a job that was stopped.
    Default: one file per recording, or printed."""
    shard: str | None = None
    """With engine local: which part of the shards this process does, and of how many, such as 2/3, for one process or
    machine per part; implies engine local."""
    shard_size: int = 256
    """Recordings in one shard of the output. A stopped job repeats at most one shard per worker."""
    max_attempts: int = 3
    """Times a recording that crashes its decoder or its worker is tried, in a process of its own, before it is given up
    and listed with the reason."""
    decoders: int = 2
    """Recordings that a worker decodes at once, ahead of the model and each in a process of its own."""
    decode_workers: int = 0
    """With engine ray: processes for each worker that only decode, on one core each of any node that has one free. The
    worker itself then decodes only what they cannot. Default: it decodes by itself, with decoders."""
    decode_memory_mb: int = 2000
    """Memory that decoding one recording may take, in MB."""
    plan: bool = False
    """Only say what the job holds and costs: hours, shards, storage, and time at the rate of a few recordings that are
    transcribed for it."""
    price_per_hour: float = 0.0
    """Price of a worker for an hour, in any currency, for plan."""

    @property
    def shard_format(self) -> ShardFormat:
        """Format of the shards; JSON lines unless Parquet is wanted."""
        return "parquet" if self.format == "parquet" else "jsonl"

    @property
    def is_job(self) -> bool:
        """Whether the output is in shards."""
        return self.engine is not None or self.shard is not None or self.plan

    def check_job(self) -> None:
        """Refuse what does not go together.

        Raises:
            ConfigError: in one line.
        """
        if self.output_dir is None and not self.plan:
            raise ConfigError("--engine writes shards: name a folder or URL for them with --output_dir")
        if self.format not in ("txt", "jsonl", "parquet"):
            raise ConfigError(f"--engine writes jsonl or parquet, not {self.format}: choose one, or leave --format out")
        if self.stream or self.channels == "each":
            raise ConfigError("--engine does not go with --stream or --channels each: leave them out")
        if self.engine == "ray" and self.shard is not None:
            raise ConfigError("--shard divides a job without a cluster: leave it or --engine ray out")
        if self.overwrite and self.shard is not None:
            raise ConfigError("--overwrite would remove what other parts of --shard wrote: choose another --output_dir")
        for name in ("shard_size", "max_attempts", "decoders", "decode_memory_mb", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} {getattr(self, name)} cannot be used: it must be at least 1")
        if self.decode_workers < 0:
            raise ConfigError(f"--decode_workers {self.decode_workers} cannot be used: it must be at least 0")
        if self.decode_workers and self.engine != "ray" and not self.plan:
            raise ConfigError("--decode_workers are processes on a cluster: add --engine ray, or raise --decoders")
        self.worker_range()
        self.check()
