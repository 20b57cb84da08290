"""Encode a batch: the one function for training, transcription and the feature cache.

Promises: a batch is moved to the encoder's device and type, and encoded in full precision.
It does not make features, and leaves it to its caller whether gradients are wanted.
"""

import torch
from torch import Tensor

from asr_doge.models.encoders.base import SpeechEncoder, SpeechEncoderOutput, shelved_parameters


def encode(
    encoder: SpeechEncoder, input_features: Tensor, attention_mask: Tensor, return_ctc_logits: bool = False
) -> SpeechEncoderOutput:
    """Encode a batch.

    Args:
        encoder: on whatever device.
        input_features: `[B, T, F]` of the feature extractor that it was trained with, or as its family says.
        attention_mask: `[B, T]`, 1 at real frames.
        return_ctc_logits: also return the CTC head's logits.

    Raises:
        ValueError: the encoder's weights were left on disk.
    """
    if shelved_parameters(encoder):
        raise ValueError("this encoder was loaded without its weights, for training from cached features")
    # Most weights of a quantized encoder are integers, and features need a floating-point type.
    weight = next(weight for weight in encoder.parameters() if weight.is_floating_point())
    lengths = attention_mask.long().sum(dim=1).to(weight.device)
    # Never in the lower precision that the parts being trained may run in: the feature cache holds what full precision
    # gives, and training from it and without it must be the same.
    with torch.autocast(device_type=weight.device.type, enabled=False):
        return encoder(input_features.to(weight.device, weight.dtype), lengths, return_ctc_logits)
