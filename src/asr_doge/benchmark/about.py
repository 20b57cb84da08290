"""Describe what was measured, and on what machine.

Promises: the description suffices to decide whether two reports may be compared, and whether an earlier transcript
would be the same now. It contains no user or host name, and no folder except the model's as the user wrote it.
"""

import hashlib
import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

from asr_doge.models import LoadedEncoder, LoadedModel
from asr_doge.models.checkpoints import find_model, load_model_config
from asr_doge.models.ctc_head import HeadedEncoder
from asr_doge.models.weights import weights_fingerprint

PACKAGES = ("asr-doge", "torch", "transformers", "tokenizers", "numpy", "jiwer")


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """The machine, and the device that the model is on; memory in bytes."""
    on_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_cuda else device.type,
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "device_memory_bytes": torch.cuda.get_device_properties(device).total_memory if on_cuda else 0,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def describe_model(loaded: LoadedModel | LoadedEncoder) -> dict[str, str | int | float | None]:
    """The parts and settings of a model, from its configuration."""
    if isinstance(loaded, LoadedEncoder):
        encoder = loaded.encoder
        kind = encoder.ctc_head.settings.type if isinstance(encoder, HeadedEncoder) else "its own"
        return {"ctc_head": kind, "dtype": str(next(encoder.parameters()).dtype).removeprefix("torch.")}
    model = loaded.model
    return {
        "speech_encoder": model.config.speech_encoder,
        "speech_encoder_revision": model.config.speech_encoder_revision,
        "language_model": model.config.language_model,
        "language_model_revision": model.config.language_model_revision,
        "adapter_type": model.config.adapter_type,
        "adapter_hidden_dim": model.config.adapter_hidden_dim,
        "adapter_stack": model.config.adapter_stack,
        "train_language_model": model.config.train_language_model,
        "max_audio_seconds": model.config.max_audio_seconds,
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def fingerprint(loaded: LoadedModel | LoadedEncoder, checkpoint: str, hotwords: Sequence[str] = ()) -> str:
    """Digest of everything a transcript depends on besides the recording and the settings of this run.

    Args:
        loaded: the model.
        checkpoint: where it was loaded from.
        hotwords: the words themselves, since the settings contain only the name of their file.
    """
    reference = find_model(checkpoint)
    parts: list[Any] = [weights_fingerprint(reference, lambda key: key), version("asr-doge"), list(hotwords)]
    if isinstance(loaded, LoadedModel):
        config = loaded.model.config
        parts += [
            config.speech_encoder_fingerprint,
            config.language_model_fingerprint,
            config.prompt_template,
            config.prompt_ids,
            config.max_audio_seconds,
            loaded.model.generation_config.to_dict(),
        ]
    else:  # a CTC head's configuration has its encoder's fingerprint
        parts += ["encoder", load_model_config(reference).to_dict()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _processor() -> str:
    """The processor's name if the system states it, else its architecture."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
