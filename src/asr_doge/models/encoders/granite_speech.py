"""Granite Speech: IBM's conformer encoder with its q-former projector, and nothing else of the checkpoint.

Promises: for a clip alone, the same speech embeddings as `GraniteSpeechForConditionalGeneration.get_audio_features`;
for a padded batch, the same embeddings each clip would get alone. Upstream's forward takes no length mask: its
attention, depthwise convolution and q-former all read the padding, so clips change with their neighbours. This module
runs upstream's layers (and therefore its weights) and masks those three places.

It does not know the language model of the full checkpoint; none of its 2.5B parameters is read or allocated.
Source: transformers `granite_speech`; https://huggingface.co/ibm-granite/granite-speech-3.3-2b.
"""

import re
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GraniteSpeechConfig, GraniteSpeechEncoderConfig, PreTrainedConfig
from transformers.models.granite_speech.modeling_granite_speech import (
    GraniteSpeechConformerAttention,
    GraniteSpeechConformerBlock,
    GraniteSpeechConformerConvModule,
    GraniteSpeechCTCEncoder,
    GraniteSpeechEncoderProjector,
)

from asr_doge.audio.log_mel import FRAME_RATE_HZ
from asr_doge.models.encoders.base import SpeechEncoder, SpeechEncoderOutput, length_mask
from asr_doge.models.feature_extraction_asr_doge import LogMelFeatureExtractor

_WANTED_KEY = re.compile(r"(?:model\.)?((?:encoder|projector)\..+)")


class GraniteSpeechEncoder(SpeechEncoder):
    """Conformer and q-former projector: `[B, T, 160]` at 50 Hz to `[B, T', 2048]` at 10 Hz (published sizes)."""

    model_type = "granite_speech"
    has_ctc = True

    def __init__(self, config: GraniteSpeechConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = GraniteSpeechCTCEncoder(cast(GraniteSpeechEncoderConfig, config.encoder_config))
        self.projector = GraniteSpeechEncoderProjector(config)
        self.hidden_size: int = cast(PreTrainedConfig, config.text_config).hidden_size
        self.embeddings_per_window: int = config.window_size // config.downsample_rate
        self.frame_rate_hz = FRAME_RATE_HZ * self.embeddings_per_window / config.window_size
        self.ctc_frame_rate_hz = float(FRAME_RATE_HZ)

    def forward(
        self, input_features: Tensor, input_lengths: Tensor, return_ctc_logits: bool = False
    ) -> SpeechEncoderOutput:
        """See `SpeechEncoder.forward`; `input_features` is `[B, T, 160]`."""
        hidden_states = self.conformer(input_features, input_lengths)
        output = SpeechEncoderOutput(self.project(hidden_states, input_lengths), self.output_lengths(input_lengths))
        if return_ctc_logits:
            output.ctc_logits, output.ctc_lengths = self.encoder.out(hidden_states), input_lengths
        return output

    def project(self, hidden_states: Tensor, input_lengths: Tensor) -> Tensor:
        """Speech embeddings `[B, T', D]` of conformer states `[B, T, hidden]`; `input_lengths` is `[B]`."""
        frame_mask = length_mask(input_lengths, hidden_states.shape[1])
        # A clip's last window is completed with zeros, as upstream does for a clip alone.
        speech_embeddings = self.projector(hidden_states.masked_fill(~frame_mask[..., None], 0.0))
        speech_mask = length_mask(self.output_lengths(input_lengths), speech_embeddings.shape[1])
        return speech_embeddings.masked_fill(~speech_mask[..., None], 0.0)

    def ctc_logits(self, input_features: Tensor, input_lengths: Tensor) -> Tensor:
        """CTC logits `[B, T, V]` alone, without running the projector; arguments as in `forward`."""
        return self.encoder.out(self.conformer(input_features, input_lengths))

    def output_lengths(self, input_lengths: Tensor) -> Tensor:
        """Three embeddings (published sizes) for each window of 15 frames begun."""
        window = self.config.window_size
        return (input_lengths + window - 1) // window * self.embeddings_per_window

    def last_layers(self, count: int) -> list[nn.Module]:
        """Conformer blocks and the projector; the CTC head stays as it is, for drafts."""
        return [*list(self.encoder.layers)[-count:], self.projector]

    @staticmethod
    def rename_checkpoint_key(key: str) -> str | None:
        """`encoder.*` and `projector.*`, with or without the `model.` that transformers 5 puts before them."""
        match = _WANTED_KEY.fullmatch(key)
        return match.group(1) if match else None

    @staticmethod
    def feature_extractor(config: PreTrainedConfig) -> LogMelFeatureExtractor:
        """The published log-mel front end; `config` has no bearing on it."""
        return LogMelFeatureExtractor()

    def ctc_text(self, ids: Sequence[int]) -> str:
        """Granite's CTC ids are character codes."""
        return "".join(map(chr, ids))

    def conformer(self, input_features: Tensor, input_lengths: Tensor) -> Tensor:
        """Conformer states `[B, T, hidden]`; what stands at padded frames is finite and meaningless.

        Args:
            input_features: `[B, T, 160]`.
            input_lengths: `[B]`.
        """
        num_frames = input_features.shape[1]
        # Attention is local to blocks of `context_size` frames. A batch whose longest clip is shorter than a block
        # needs a shorter one only: the frames left out would all be masked.
        block = min(self.encoder.config.context_size, num_frames)
        padding = -num_frames % block
        frame_mask = length_mask(input_lengths, num_frames + padding)
        # Whatever stands in the padding: one huge or NaN value there would reach real frames as 0 × inf.
        input_features = input_features.masked_fill(~frame_mask[:, :num_frames, None], 0.0)
        hidden_states = F.pad(self.encoder.input_linear(input_features), (0, 0, 0, padding))
        distances = self.encoder.attention_dists[:block, :block]
        layers = cast(list[GraniteSpeechConformerBlock], list(self.encoder.layers))
        for index, layer in enumerate(layers, start=1):
            hidden_states = hidden_states + 0.5 * layer.ff1(hidden_states)
            hidden_states = hidden_states + _block_attention(layer.attn, hidden_states, distances, frame_mask)
            hidden_states = hidden_states + _convolution(layer.conv, hidden_states, frame_mask)
            hidden_states = hidden_states + 0.5 * layer.ff2(hidden_states)
            hidden_states = layer.post_norm(hidden_states)
            if index == len(layers) // 2:  # self-conditioning on the CTC posteriors half way
                posteriors = self.encoder.out(hidden_states).softmax(dim=-1)
                hidden_states = hidden_states + self.encoder.out_mid(posteriors)
        return hidden_states[:, :num_frames]


def _block_attention(
    attention: GraniteSpeechConformerAttention, hidden_states: Tensor, distances: Tensor, frame_mask: Tensor
) -> Tensor:
    """Self-attention within blocks of `len(distances)` frames, with Shaw's relative positions and masked padding.

    Args:
        hidden_states: `[B, T, hidden]`, `T` a multiple of the block.
        distances: `[block, block]`, index into the relative position embedding of each (query, key).
        frame_mask: `[B, T]`, True at real frames.
    """
    batch, frames, _ = hidden_states.shape
    block = distances.shape[0]
    shape = (batch * frames // block, block, attention.num_heads, attention.dim_head)
    normed = attention.pre_norm(hidden_states)
    query = attention.to_q(normed).reshape(shape).transpose(1, 2)  # [blocks, heads, block, d]
    key, value = (part.reshape(shape).transpose(1, 2) for part in attention.to_kv(normed).chunk(2, dim=-1))
    positions = attention.rel_pos_emb(distances)  # [block, block, d]
    bias = torch.einsum("bhcd,crd->bhcr", query, positions) * attention.scale
    key_mask = frame_mask.reshape(-1, 1, 1, block)
    # The lowest finite value, not -inf: a block that is all padding must stay finite.
    bias = bias.masked_fill(~key_mask, torch.finfo(bias.dtype).min)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=attention.scale)
    mixed = mixed.transpose(1, 2).reshape(batch, frames, -1)
    return attention.dropout(attention.to_out(mixed))


def _convolution(module: GraniteSpeechConformerConvModule, hidden_states: Tensor, frame_mask: Tensor) -> Tensor:
    """The conformer's convolution module with padding read as zeros, which is what a clip alone sees at its ends.

    Args:
        hidden_states: `[B, T, hidden]`.
        frame_mask: `[B, T]`, True at real frames.
    """
    channels_first = module.norm(hidden_states).transpose(1, 2)  # [B, hidden, T]
    gated = module.glu(module.up_conv(channels_first)).masked_fill(~frame_mask[:, None, :], 0.0)
    normed = _batch_norm(module.batch_norm, module.depth_conv(gated), frame_mask)
    return module.dropout(module.down_conv(module.silu(normed)).transpose(1, 2))


def _batch_norm(batch_norm: nn.BatchNorm1d, channels_first: Tensor, frame_mask: Tensor) -> Tensor:
    """Batch norm of `[B, C, T]`; in training its statistics are of real frames only."""
    if not batch_norm.training:
        return batch_norm(channels_first)
    normed = torch.zeros_like(channels_first).transpose(1, 2)
    normed[frame_mask] = batch_norm(channels_first.transpose(1, 2)[frame_mask])
    return normed.transpose(1, 2)
