"""The commands of `asr-doge`: their names, their settings, and how they are run.

Promises: importing this imports no command, so `asr-doge` and `--help` answer at once; a command's settings load
neither torch nor transformers, and its code is imported only when it runs.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

from jsonargparse import ArgumentParser

from asr_doge.cli.arguments import build_parser, parse_config
from asr_doge.cli.console import quiet_libraries


@runtime_checkable
class _ReadsData(Protocol):
    """Settings of a command that reads manifests."""

    def check_data(self) -> None:
        """Raise a DataError if one is missing."""


@dataclass(frozen=True)
class Command:
    """A command: `asr_doge.cli.NAME` has its `run(config)`, which returns the exit code.

    A name of two words, such as `pretrain ctc_head`, is written with an underscore as a module and as a YAML section.

    Attributes:
        meaning: one line.
        config: the dataclass of its settings, as `module:name`.
        example: a command line for `--help`.
        positional: the field that arguments without a flag go to.
    """

    meaning: str
    config: str
    example: str
    positional: str | None = None

    @property
    def config_class(self) -> type[Any]:
        """The dataclass of its settings."""
        module, name = self.config.split(":")
        loaded: type[Any] = getattr(import_module(module), name)
        return loaded


COMMANDS = {
    "demo": Command(
        "Train and try everything on synthesized speech, in a few minutes.",
        "asr_doge.cli.configuration:DemoConfig",
        "asr-doge demo --output_dir ./demo",
    ),
    "transcribe": Command(
        "Recordings to text.",
        "asr_doge.scaling.configuration:TranscribeJobConfig",
        "asr-doge transcribe recording.mp3 folder/ --format json",
        positional="files",
    ),
    "download": Command(
        "Fetch a corpus or a model; --list names them.",
        "asr_doge.data.configuration:DownloadConfig",
        "asr-doge download librispeech --output_dir ./data --splits train-clean-100 dev-clean test-clean",
        positional="corpora",
    ),
    "listen": Command(
        "Transcribe a microphone.",
        "asr_doge.inference.configuration:ListenConfig",
        "asr-doge listen --format jsonl",
    ),
    "serve": Command(
        "Serve a model as OpenAI's clients speak it, with a page to try it.",
        "asr_doge.serving.configuration:ServeConfig",
        "asr-doge serve --model ./checkpoints/best --port 8000",
    ),
    "process": Command(
        "A corpus to manifests.",
        "asr_doge.scaling.configuration:ProcessJobConfig",
        "asr-doge process --dataset librispeech --data_dir ./data --output_dir ./processed",
    ),
    "features": Command(
        "Run the frozen encoder once over processed speech.",
        "asr_doge.scaling.configuration:FeaturesJobConfig",
        "asr-doge features --data_dir ./processed --speech_encoder nano/encoder",
    ),
    "train": Command(
        "Fit the adapter.",
        "asr_doge.training.configuration:TrainConfig",
        "asr-doge train --data_dir ./processed --features_dir ./processed/features --output_dir ./checkpoints",
    ),
    "benchmark": Command(
        "Accuracy, speed and memory of a checkpoint.",
        "asr_doge.cli.configuration:BenchmarkJobConfig",
        "asr-doge benchmark --checkpoint_dir ./checkpoints/best --data_dir ./processed",
    ),
    "pretrain": Command(
        "Make the frozen parts of a small model, such as nano.",
        "asr_doge.training.pretraining_configuration:PretrainConfig",
        "asr-doge pretrain --config configs/nano.yaml --digits_dir ./fsdd --output_dir ./nano",
    ),
    "pretrain ctc_head": Command(
        "A CTC head for an encoder that has none.",
        "asr_doge.training.pretraining_configuration:PretrainCTCHeadConfig",
        "asr-doge pretrain ctc_head --data_dir ./processed --speech_encoder openai/whisper-base --output_dir ./head",
    ),
    "pretrain language_model": Command(
        "A small language model of text alone.",
        "asr_doge.training.pretraining_configuration:PretrainLanguageModelConfig",
        "asr-doge pretrain language_model --text_files novels.txt.gz --without_manifests test.json --output_dir ./lm",
    ),
    "pretrain punctuation": Command(
        "A small model that restores case and punctuation, of text alone.",
        "asr_doge.training.pretraining_configuration:PretrainPunctuationConfig",
        "asr-doge pretrain punctuation --text_files novels.txt.gz --without_manifests test.json --output_dir ./english",
    ),
    "pretrain encoder": Command(
        "A small speech encoder with CTC, from nothing, on spoken digits.",
        "asr_doge.training.pretraining_configuration:PretrainEncoderConfig",
        "asr-doge pretrain encoder --architecture seanet --digits_dir ./fsdd --output_dir ./seanet",
    ),
    "merge": Command(
        "LoRA's updates into the weights of the language model, or apart for peft.",
        "asr_doge.cli.configuration:MergeConfig",
        "asr-doge merge --checkpoint_dir ./checkpoints/best --output_dir ./merged",
    ),
    "export": Command(
        "A model as ONNX graphs, to run without PyTorch.",
        "asr_doge.cli.configuration:ExportConfig",
        "asr-doge export --checkpoint_dir ./checkpoints/best --output_dir ./onnx",
    ),
    "info": Command(
        "Versions, devices, places, and the parameters of a model.",
        "asr_doge.cli.configuration:InfoConfig",
        "asr-doge info --model published",
    ),
}


def parse_command(name: str, arguments: Sequence[str]) -> Any:
    """The settings of a command from what follows it on the command line; see `parse_config`."""
    command = COMMANDS[name]
    sections = tuple(section(other) for other in COMMANDS)
    return parse_config(command_parser(name), name, command.config_class, arguments, sections, command.positional)


def command_parser(name: str) -> ArgumentParser:
    """The parser of a command's arguments; see `build_parser`."""
    command = COMMANDS[name]
    return build_parser(name, command.config_class, command.example, command.positional)


def section(name: str) -> str:
    """A command's name with an underscore for the space: its module, its section of YAML."""
    return name.replace(" ", "_")


def split_command(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The command at the start of the arguments, of one word or two, and the rest."""
    two = " ".join(arguments[:2])
    return (two, [*arguments[2:]]) if two in COMMANDS else (arguments[0], [*arguments[1:]])


def run_command(name: str, arguments: Sequence[str]) -> int:
    """Run a command as the command line does; returns its exit code."""
    config = parse_command(name, arguments)
    if isinstance(config, _ReadsData):  # before the imports below, which take seconds
        config.check_data()
    run: Callable[[Any], int] = import_module(f"asr_doge.cli.{section(name)}").run
    if "transformers" in sys.modules:  # it takes seconds to import, and not every command needs it
        quiet_libraries()
    return run(config)
