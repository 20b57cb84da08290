"""Whisper: OpenAI's speech encoder, without its decoder.

Promises: the same states as `WhisperModel.get_encoder()`, cut to each clip's own length. With the window `full` it
reads 30 s whatever the clip, as it was trained to. With `clip` it reads the clip and a second of silence: the states
that upstream gives where `max_source_positions` is that of the clip, at the cost of the clip. Either way clips cannot
see each other whatever the batch.
It has no CTC head, and gives 50 embeddings a second: stack them in the adapter (`adapter_stack`).
Source: transformers `whisper`; https://arxiv.org/abs/2212.04356.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from asr_doge.models.encoders.base import EncoderFamily, SpeechEncoderOutput, encoder_window, length_mask

SILENCE_FRAMES = 100
"""Frames of silence after a clip with window `clip`: a second at 100 Hz. Without it, a clip's last states differ most
from those with window `full`."""
LONGEST_FRAMES, SAMPLES_PER_FRAME = 3000, 160
"""Frames of 30 s, and samples in each, of transformers' `WhisperFeatureExtractor`."""


class WhisperSpeechEncoder(EncoderFamily):
    """Whisper encoder: `[B, mels, 3000]` at 100 Hz to `[B, T', d_model]` at 50 Hz."""

    model_type = "whisper"
    checkpoint_keys = r"(?:model\.)?(encoder\..+)"  # of `WhisperForConditionalGeneration`, too
    unread_settings = ("decoder_*", "vocab_size", "max_target_positions", "*suppress_tokens", "median_filter_width")
    has_ctc = False
    windows = ("full", "clip")

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.config = config
        self.window = encoder_window(config)
        self.encoder = WhisperEncoder(config)
        self.hidden_size: int = config.d_model
        self.frame_rate_hz = 50.0

    def forward(
        self, input_features: Tensor, input_lengths: Tensor, return_ctc_logits: bool = False
    ) -> SpeechEncoderOutput:
        """See `SpeechEncoder.forward`; `input_features` is `[B, mels, 3000]`, or shorter for the window `clip`."""
        if return_ctc_logits:
            raise ValueError("Whisper has no CTC head")
        speech_lengths = self.output_lengths(input_lengths)
        if self.window == "clip":
            frames = int(self.window_lengths(input_lengths, input_features.shape[2]).max())
            states = self.clip_states(input_features[..., :frames], input_lengths)
        else:
            states = self.encoder(input_features).last_hidden_state
        states = states[:, : int(speech_lengths.max())]
        mask = length_mask(speech_lengths, states.shape[1])
        return SpeechEncoderOutput(states.masked_fill(~mask[..., None], 0.0), speech_lengths)

    @staticmethod
    def window_lengths(input_lengths: Tensor, most: int) -> Tensor:
        """Frames `[B]` that the window `clip` reads of clips of `input_lengths` `[B]`: even, and `most` at most."""
        return ((input_lengths + SILENCE_FRAMES + 1) // 2 * 2).clamp(max=most)

    def clip_states(self, input_features: Tensor, input_lengths: Tensor) -> Tensor:
        """States `[B, T / 2, d_model]` with the window `clip`; past a clip's window they mean nothing.

        Args:
            input_features: `[B, mels, T]`, T even, and no shorter than the longest window.
            input_lengths: `[B]`.
        """
        encoder, frames = self.encoder, input_features.shape[2]
        windows = self.window_lengths(input_lengths, frames)
        read = length_mask(windows, frames)[:, None]
        # Past a window there are the zeros that a convolution finds past the end of a clip alone.
        states = F.gelu(encoder.conv1(input_features.masked_fill(~read, 0.0))).masked_fill(~read, 0.0)
        states = F.gelu(encoder.conv2(states)).transpose(1, 2) + encoder.embed_positions.weight[: frames // 2]
        unread = ~length_mask(windows // 2, frames // 2)[:, None, None]
        mask = states.new_zeros(unread.shape).masked_fill(unread, torch.finfo(states.dtype).min)
        for layer in encoder.layers:
            states = layer(states, mask)
        return encoder.layer_norm(states)

    def extractor_options(self, longest: int) -> dict[str, Any]:
        """Features of no more than the window `clip` reads, instead of 30 s."""
        if self.window != "clip":
            return {}
        frames = self.window_lengths(torch.tensor(-(-longest // SAMPLES_PER_FRAME)), LONGEST_FRAMES)
        return {"max_length": int(frames) * SAMPLES_PER_FRAME}

    def num_frames(self, input_features: Tensor) -> int:
        """The last axis: `input_features` is `[B, mels, T]`."""
        return input_features.shape[2]

    def output_lengths(self, input_lengths: Tensor) -> Tensor:
        """One embedding for every two frames begun (a convolution of stride 2)."""
        return (input_lengths + 1) // 2

    def last_layers(self, count: int) -> list[nn.Module]:
        """Encoder layers and the norm after them."""
        return [*list(self.encoder.layers)[-count:], self.encoder.layer_norm]

    @staticmethod
    def feature_extractor(config: PreTrainedConfig) -> WhisperFeatureExtractor:
        """Whisper's front end with as many mel bands as the checkpoint wants."""
        return WhisperFeatureExtractor(feature_size=config.num_mel_bins)
