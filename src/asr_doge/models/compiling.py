"""Compile a loaded encoder for a GPU, at once, so that no run ends in the middle for want of a compiler.

Promises: outputs are those of the uncompiled encoder to rounding; what cannot be compiled is refused in one line.
It does not know what is compiled (see `GraniteSpeechEncoder.compile`).
"""

import numpy as np
import torch

from asr_doge.errors import ConfigError, first_line
from asr_doge.models.ctc_head import without_head
from asr_doge.models.encoders.granite_speech import GraniteSpeechEncoder
from asr_doge.models.loading import LoadedEncoder, LoadedModel
from asr_doge.models.quantization import is_quantized

_BATCHES = ([5.0, 5.0], [2.0])
"""Seconds of the clips that are encoded to compile: a batch that has one block of attention gets a graph of its own."""


def compile_encoder(loaded: LoadedModel | LoadedEncoder) -> None:
    """Compile the conformer blocks of its encoder, in place; takes some seconds on a GPU, a minute or more on a CPU.

    Raises:
        ConfigError: its encoder has no blocks that can be compiled, or is quantized, or there is no compiler for its
            device.
    """
    speech_encoder = loaded.speech_encoder
    encoder = without_head(speech_encoder.encoder)
    if not isinstance(encoder, GraniteSpeechEncoder):
        raise ConfigError(
            f"--compile is for Granite Speech's encoder, and this one is {type(encoder).__name__}: leave it out"
        )
    if is_quantized(encoder):  # each shape of matrix would be compiled by itself, for minutes
        raise ConfigError("--compile does not go with 8-bit matrices: leave it or --quantization int8 out")
    rng, rate = np.random.default_rng(0), speech_encoder.sampling_rate
    try:
        encoder.compile()
        with torch.inference_mode():  # as everything that encodes does, since it is a part of what is compiled for
            for batch in _BATCHES:
                speech_encoder.encode([rng.standard_normal(round(rate * s)).astype(np.float32) for s in batch])
    except RuntimeError as error:  # as are Dynamo's and Inductor's own
        raise ConfigError(
            f"--compile cannot be used on {speech_encoder.device}: {first_line(error)}; install a C++ compiler, and"
            " Triton for a GPU, or leave it out"
        ) from error
