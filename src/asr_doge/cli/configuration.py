"""Settings of the command line's own: `demo`, `merge`, `export`, `info`, and `benchmark` with its engine."""

from dataclasses import dataclass

from asr_doge.benchmark.configuration import BenchmarkConfig
from asr_doge.defaults import DEFAULT_MODEL
from asr_doge.scaling.configuration import Engine, EngineConfig


@dataclass
class BenchmarkJobConfig(EngineConfig, BenchmarkConfig):
    """Measure a checkpoint's accuracy, speed and memory on a test set, or compare two reports."""

    engine: Engine = "local"
    """local: this process does the part that shard names. ray: workers on a Ray cluster do all parts, and their reports
    are joined; one that was stopped goes on."""


@dataclass
class DemoConfig:
    """Make a small corpus of spoken digits, train an adapter on it from a random start, and measure what it learned."""

    output_dir: str = "./asr-doge-demo"
    """Folder for everything that is made: an empty or new one, or that of an earlier demo, which is replaced."""
    train_utterances: int = 1200
    """Digit strings to train on; a twelfth as many are made to tune and to test on."""
    seed: int = 0
    """Seed of the speech and of the adapter."""


@dataclass
class MergeConfig:
    """Merge LoRA into the language model: the new checkpoint gives the same text and holds the whole language model."""

    checkpoint_dir: str
    """Checkpoint folder or hub id, that holds LoRA of the language model."""
    output_dir: str
    """Folder to write; it must not exist."""
    for_peft: bool = False
    """Do not merge: write LoRA alone, in the format in which peft loads it onto the language model."""


@dataclass
class ExportConfig:
    """Write a model as ONNX graphs, to run without PyTorch. Needs the extra: pip install "asr-doge[export]"."""

    checkpoint_dir: str = "nano"
    """Checkpoint folder, hub id, or nano."""
    output_dir: str = "./onnx"
    """Folder to write; it must not exist."""


@dataclass
class InfoConfig:
    """Versions, devices, where models and caches live, and the parameters of a model."""

    model: str = DEFAULT_MODEL
    """Checkpoint folder, hub id, english or nano; `published` is the published pair, counted without downloading it."""
    report: bool = False
    """Print only versions and devices, to paste into a bug report; no name of a user, a host or a folder is in it."""
