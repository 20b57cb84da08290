"""Conformers with a CTC head that take a length mask: NVIDIA's Parakeet CTC (FastConformer) and IBM's Granite Speech 5.

Promises: the same states and logits as `ParakeetForCTC` and `GraniteSpeech5ForCTC`, for a clip alone and in any padded
batch, whatever the padding contains. Both give 12.5 speech embeddings a second, and CTC logits at that rate.
Source: transformers `parakeet` and `granite_speech5`; https://arxiv.org/abs/2305.05084, 2505.08699.
"""

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ParakeetCTCConfig, ParakeetEncoder, ParakeetFeatureExtractor, PreTrainedConfig
from transformers.models.granite_speech5.configuration_granite_speech5 import GraniteSpeech5CTCConfig
from transformers.models.granite_speech5.modeling_granite_speech5 import GraniteSpeech5Encoder
from transformers.models.parakeet.modeling_parakeet import ParakeetEncoderCTCHead

from asr_doge.audio.log_mel import DELTA_FEATURE_SIZE
from asr_doge.models.checkpoints import Reference
from asr_doge.models.encoders.base import EncoderFamily, SpeechEncoderOutput, length_mask
from asr_doge.models.encoders.vocabularies import blank_first, read_pieces, vocabulary_of
from asr_doge.models.feature_extraction_asr_doge import LogMelFeatureExtractor


class MaskedConformer(EncoderFamily):
    """The base class of both families.

    Attributes:
        shortest: frames of input per speech embedding.
    """

    unread_settings = ("ctc_*",)
    encoder: Any
    shortest: int

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.hidden_size: int = config.encoder_config.hidden_size
        self.vocabulary = vocabulary_of(config)
        self.has_ctc = self.vocabulary is not None
        self.ctc_units = self.vocabulary.units if self.vocabulary is not None else "characters"

    def forward(
        self, input_features: Tensor, input_lengths: Tensor, return_ctc_logits: bool = False
    ) -> SpeechEncoderOutput:
        """See `SpeechEncoder.forward`; `input_features` is `[B, T, F]`."""
        output = self.padded(input_features, input_lengths, return_ctc_logits)
        longest = int(output.speech_lengths.max())
        output.speech_embeddings = output.speech_embeddings[:, :longest]
        if output.ctc_logits is not None:
            output.ctc_logits = output.ctc_logits[:, :longest]
        return output

    def padded(self, input_features: Tensor, input_lengths: Tensor, return_ctc_logits: bool) -> SpeechEncoderOutput:
        """As `forward`, with as many embeddings as `T` frames have, whatever the lengths."""
        read = input_lengths.clamp(min=self.shortest)
        frames = F.pad(input_features, (0, 0, 0, max(0, self.shortest - input_features.shape[1])))
        real = length_mask(input_lengths, frames.shape[1])[..., None]
        mask = length_mask(read, frames.shape[1])
        states = self.encoder(frames.masked_fill(~real, 0.0), attention_mask=mask).last_hidden_state
        lengths = self.output_lengths(input_lengths)
        states = states.masked_fill(~length_mask(lengths, states.shape[1])[..., None], 0.0)
        output = SpeechEncoderOutput(states, lengths)
        if return_ctc_logits:
            output.ctc_logits, output.ctc_lengths = blank_first(self._logits(states), self.config.pad_token_id), lengths
        return output

    @abstractmethod
    def _logits(self, states: Tensor) -> Tensor:
        """CTC logits `[B, T', V]` of hidden states `[B, T', D]`, with the checkpoint's own blank."""

    def last_layers(self, count: int) -> list[nn.Module]:
        """The last conformer blocks."""
        return list(self.encoder.layers)[-count:]

    @staticmethod
    def complete_config(config: PreTrainedConfig, reference: Reference) -> None:
        """Add the vocabulary of the head."""
        read_pieces(config, reference)


class ParakeetSpeechEncoder(MaskedConformer):
    """Parakeet CTC: `[B, T, mels]` at 100 Hz to `[B, T', hidden]` at 12.5 Hz (published sizes)."""

    model_type = "parakeet_ctc"
    ctc_layers = ("lm_head",)
    shortest = 1

    def __init__(self, config: ParakeetCTCConfig) -> None:
        super().__init__(config)
        self.encoder = ParakeetEncoder(config.encoder_config)  # type: ignore[arg-type]  # a dictionary only until __post_init__
        self.lm_head = ParakeetEncoderCTCHead(self.hidden_size, config.vocab_size, kernel_size=1)
        self.frame_rate_hz = 100 / self.encoder.config.subsampling_factor
        self.ctc_frame_rate_hz = self.frame_rate_hz

    def _logits(self, states: Tensor) -> Tensor:
        logits: Tensor = self.lm_head(states)
        return logits

    def output_lengths(self, input_lengths: Tensor) -> Tensor:
        """Frames after the convolutions of stride 2."""
        config = self.encoder.config
        kernel, stride, factor, lengths = (
            config.subsampling_conv_kernel_size,
            config.subsampling_conv_stride,
            1,
            input_lengths,
        )
        while factor < config.subsampling_factor:
            reached = lengths + (kernel - 1) // 2 * 2 - kernel
            lengths, factor = torch.div(reached, stride, rounding_mode="floor") + 1, factor * 2
        return lengths

    @staticmethod
    def rename_checkpoint_key(key: str) -> str | None:
        """Names unchanged, but for the head's: `ctc_head` is that of a head trained on an encoder."""
        if key.startswith("ctc_head."):
            return f"lm_head.{key.removeprefix('ctc_head.')}"
        return key if key.startswith("encoder.") else None

    @staticmethod
    def feature_extractor(config: PreTrainedConfig) -> ParakeetFeatureExtractor:
        """NVIDIA's log-mel front end, with the checkpoint's number of bands."""
        return ParakeetFeatureExtractor(feature_size=config.encoder_config.num_mel_bins)


class GraniteSpeech5SpeechEncoder(MaskedConformer):
    """Granite Speech 5: `[B, T, 320]` at 50 Hz to `[B, T', hidden]` at 12.5 Hz (published sizes)."""

    model_type = "granite_speech5_ctc"
    checkpoint_keys = r"(encoder\..+)"  # the CTC head is a part of the encoder

    def __init__(self, config: GraniteSpeech5CTCConfig) -> None:
        super().__init__(config)
        self.encoder = GraniteSpeech5Encoder(config.encoder_config)  # type: ignore[arg-type]  # a dictionary only until __post_init__
        self.shortest = 2 ** len(self.encoder.config.subsample_layers)
        self.frame_rate_hz = 50 / self.shortest
        self.ctc_frame_rate_hz = self.frame_rate_hz

    def _logits(self, states: Tensor) -> Tensor:
        logits: Tensor = self.encoder.out(states)  # which upstream's `ctc_head` is tied to
        return logits

    def output_lengths(self, input_lengths: Tensor) -> Tensor:
        """Frames halved by each subsampling layer; at least one."""
        return (input_lengths // self.shortest).clamp(min=1)

    @staticmethod
    def feature_extractor(config: PreTrainedConfig) -> LogMelFeatureExtractor:
        """IBM's log-mel front end with deltas."""
        return LogMelFeatureExtractor(feature_size=DELTA_FEATURE_SIZE, deltas=True)
