"""Whisper: OpenAI's speech encoder, without its decoder.

Promises: the same states as `WhisperModel.get_encoder()`, cut to each clip's own length. Whisper always reads 30 s, so
clips cannot see each other whatever the batch.
It has no CTC head, and gives 50 embeddings a second: stack them in the adapter (`adapter_stack`).
Source: transformers `whisper`; https://arxiv.org/abs/2212.04356.
"""

import re

from torch import Tensor, nn
from transformers import PreTrainedConfig, WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from asr_doge.models.encoders.base import SpeechEncoder, SpeechEncoderOutput, length_mask

_WANTED_KEY = re.compile(r"(?:model\.)?(encoder\..+)")


class WhisperSpeechEncoder(SpeechEncoder):
    """Whisper encoder: `[B, mels, 3000]` at 100 Hz to `[B, T', d_model]` at 50 Hz."""

    model_type = "whisper"
    unread_settings = ("decoder_*", "vocab_size", "max_target_positions", "*suppress_tokens", "median_filter_width")
    has_ctc = False

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = WhisperEncoder(config)
        self.hidden_size: int = config.d_model
        self.frame_rate_hz = 50.0

    def forward(
        self, input_features: Tensor, input_lengths: Tensor, return_ctc_logits: bool = False
    ) -> SpeechEncoderOutput:
        """See `SpeechEncoder.forward`; `input_features` is `[B, mels, 3000]`."""
        if return_ctc_logits:
            raise ValueError("Whisper has no CTC head")
        speech_lengths = self.output_lengths(input_lengths)
        states = self.encoder(input_features).last_hidden_state
        states = states[:, : int(speech_lengths.max())]
        mask = length_mask(speech_lengths, states.shape[1])
        return SpeechEncoderOutput(states.masked_fill(~mask[..., None], 0.0), speech_lengths)

    def num_frames(self, input_features: Tensor) -> int:
        """The last axis: `input_features` is `[B, mels, 3000]`."""
        return input_features.shape[2]

    def output_lengths(self, input_lengths: Tensor) -> Tensor:
        """One embedding for every two frames begun (a convolution of stride 2)."""
        return (input_lengths + 1) // 2

    def last_layers(self, count: int) -> list[nn.Module]:
        """Encoder layers and the norm after them."""
        return [*list(self.encoder.layers)[-count:], self.encoder.layer_norm]

    @staticmethod
    def rename_checkpoint_key(key: str) -> str | None:
        """`encoder.*`, with or without the `model.` that `WhisperForConditionalGeneration` puts before it."""
        match = _WANTED_KEY.fullmatch(key)
        return match.group(1) if match else None

    @staticmethod
    def feature_extractor(config: PreTrainedConfig) -> WhisperFeatureExtractor:
        """Whisper's front end with as many mel bands as the checkpoint wants."""
        return WhisperFeatureExtractor(feature_size=config.num_mel_bins)
