"""Compile a loaded encoder for a GPU right after loading, so that a missing compiler is noticed before any work.

Promises: outputs are those of the uncompiled encoder to rounding; what cannot be compiled is refused in one line, an
encoder of another family before any weights are loaded.
It does not know what is compiled (see `GraniteSpeechEncoder.compile`).
"""

from pathlib import Path
from typing import cast

import numpy as np
import torch
from transformers import PreTrainedConfig

from asr_doge.choices import Quantization
from asr_doge.defaults import DEFAULT_MODEL
from asr_doge.errors import ConfigError, first_line
from asr_doge.models.checkpoints import find_model, load_model_config
from asr_doge.models.configuration_asr_doge import ASRDogeConfig
from asr_doge.models.ctc_head import without_head
from asr_doge.models.ctc_head_checkpoints import CTCHeadConfig
from asr_doge.models.encoders import ENCODERS, encoder_family
from asr_doge.models.encoders.granite_speech import GraniteSpeechEncoder
from asr_doge.models.loading import LoadedEncoder, LoadedModel

_BATCHES = ([5.0, 5.0], [2.0])
"""Seconds of the clips that are encoded to compile: a batch that has one block of attention gets a graph of its own."""


def check_compilable(model: str | Path | None, quantization: Quantization = "none") -> None:
    """Refuse to compile the encoder of a model, by its configuration alone: the encoder itself is not fetched.

    Args:
        model: as in `load_model` or `load_encoder_alone`.
        quantization: in which it is to be loaded.

    Raises:
        ConfigError: its encoder has no blocks that can be compiled, or is to be quantized.
        CheckpointError: there is no such model.
    """
    config = load_model_config(find_model(model if model is not None else DEFAULT_MODEL))
    encoder_config = config.encoder_config if isinstance(config, ASRDogeConfig | CTCHeadConfig) else config
    check_encoder_compilable(encoder_config, quantization)


def check_encoder_compilable(config: PreTrainedConfig, quantization: Quantization = "none") -> None:
    """`check_compilable` for an encoder of this configuration."""
    if not issubclass(encoder_family(config), GraniteSpeechEncoder):
        families = [name for name, family in ENCODERS.items() if issubclass(family, GraniteSpeechEncoder)]
        raise ConfigError(
            f"--compile is for encoders of type {' and '.join(families)}, and this one is of type"
            f" {config.model_type}: leave it out"
        )
    if quantization == "int8":  # each shape of matrix would be compiled by itself, for minutes
        raise ConfigError("--compile does not go with 8-bit matrices: leave it or --quantization int8 out")


def compile_encoder(loaded: LoadedModel | LoadedEncoder) -> None:
    """Compile the conformer blocks of its encoder, in place; takes some seconds on a GPU, a minute or more on a CPU.

    Args:
        loaded: of a configuration that `check_compilable` takes.

    Raises:
        ConfigError: there is no compiler for its device.
    """
    speech_encoder = loaded.speech_encoder
    rng, rate = np.random.default_rng(0), speech_encoder.sampling_rate
    try:
        cast(GraniteSpeechEncoder, without_head(speech_encoder.encoder)).compile()
        with torch.inference_mode():  # as everything that encodes does, since it is a part of what is compiled for
            for batch in _BATCHES:
                speech_encoder.encode([rng.standard_normal(round(rate * s)).astype(np.float32) for s in batch])
    except RuntimeError as error:  # as are Dynamo's and Inductor's own
        raise ConfigError(
            f"--compile cannot be used on {speech_encoder.device}: {first_line(error)}; install a C++ compiler, and"
            " Triton for a GPU, or leave it out"
        ) from error
