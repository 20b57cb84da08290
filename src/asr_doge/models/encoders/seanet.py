"""SEANet: EnCodec's encoder, convolutions and an LSTM over the waveform, and a CTC head if it was trained with one.

Promises: the same states as `EncodecModel.encoder`, for a clip alone and in any padded batch: before every convolution,
positions past a clip's end are set to zero. This requires causal convolutions with zeros before the clip
(`use_causal_conv`, `pad_mode: constant`), as `pretrain encoder --architecture seanet` makes them.
It does not quantize: an adapter reads the states that EnCodec would pass to its codebooks.
Source: transformers `encodec`; https://arxiv.org/abs/2009.02095, 2210.13438.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import EncodecConfig, PreTrainedConfig
from transformers.models.encodec.modeling_encodec import EncodecConv1d, EncodecEncoder

from asr_doge.errors import CheckpointError
from asr_doge.models.checkpoints import Reference
from asr_doge.models.encoders.base import EncoderFamily, SpeechEncoderOutput, length_mask
from asr_doge.models.encoders.vocabularies import vocabulary_of
from asr_doge.models.encoders.wav2vec2 import OLD_NORMS
from asr_doge.models.feature_extraction_asr_doge import WaveformFeatureExtractor


class SEANetSpeechEncoder(EncoderFamily):
    """SEANet: `[B, samples]` to `[B, T', hidden]`, one per `hop` samples, and CTC logits at that rate."""

    model_type = "encodec"
    unread_settings = ("ctc_tokens", "codebook_*", "target_bandwidths", "chunk_length_s", "overlap", "normalize")
    ctc_layers = ("lm_head",)

    def __init__(self, config: EncodecConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = EncodecEncoder(config)
        self.hidden_size: int = config.hidden_size
        self.hop = math.prod(config.upsampling_ratios)
        self.frame_rate_hz = config.sampling_rate / self.hop
        self.vocabulary = vocabulary_of(config)
        self.has_ctc = self.vocabulary is not None
        if self.vocabulary is not None:
            self.lm_head = nn.Linear(config.hidden_size, len(self.vocabulary))
            self.ctc_frame_rate_hz = self.frame_rate_hz

    def forward(
        self, input_features: Tensor, input_lengths: Tensor, return_ctc_logits: bool = False
    ) -> SpeechEncoderOutput:
        """See `SpeechEncoder.forward`; `input_features` is `[B, samples]`."""
        hidden, lengths = input_features[:, None], input_lengths
        for layer in self.encoder.layers:
            if isinstance(layer, EncodecConv1d):
                hidden = hidden.masked_fill(~length_mask(lengths, hidden.shape[2])[:, None], 0.0)
                stride = layer.conv.stride[0]
                lengths = (lengths + stride - 1) // stride
            hidden = layer(hidden)
        mask = length_mask(lengths, int(lengths.max()))
        states = hidden.transpose(1, 2)[:, : mask.shape[1]].masked_fill(~mask[..., None], 0.0)
        output = SpeechEncoderOutput(states, lengths)
        if return_ctc_logits:
            if not self.has_ctc:
                raise ValueError("this encodec encoder has no CTC head")
            output.ctc_logits, output.ctc_lengths = self.lm_head(states), lengths
        return output

    def output_lengths(self, input_lengths: Tensor) -> Tensor:
        """One per `hop` samples, rounded up."""
        return torch.div(input_lengths + self.hop - 1, self.hop, rounding_mode="floor")

    def last_layers(self, count: int) -> list[nn.Module]:
        """The last of its layers: convolutions, blocks, activations and the LSTM."""
        return list(self.encoder.layers)[-count:]

    @staticmethod
    def complete_config(config: PreTrainedConfig, reference: Reference) -> None:
        """Add nothing; refuse configurations that cannot be read."""
        settings: Any = config
        if not settings.use_causal_conv or settings.pad_mode != "constant" or settings.norm_type != "weight_norm":
            raise CheckpointError(
                f"speech encoder '{reference.name}': only EnCodec's encoders with use_causal_conv, pad_mode constant"
                " and norm_type weight_norm can be read, as asr-doge pretrain encoder makes them"
            )
        if settings.audio_channels != 1:
            raise CheckpointError(
                f"speech encoder '{reference.name}' takes {settings.audio_channels} channels, not one"
            )

    @staticmethod
    def rename_checkpoint_key(key: str) -> str | None:
        """Names of the encoder and the CTC head unchanged; None for decoder and codebooks."""
        if not key.startswith(("encoder.", "lm_head.")):
            return None
        owner, _, name = key.rpartition(".")
        return f"{owner}.{OLD_NORMS.get(name, name)}"

    @staticmethod
    def feature_extractor(config: PreTrainedConfig) -> WaveformFeatureExtractor:
        """Samples as they are."""
        return WaveformFeatureExtractor(sampling_rate=config.sampling_rate)
