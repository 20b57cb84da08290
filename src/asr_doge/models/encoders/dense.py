"""Speech encoders on dense, padded tensors, as an ONNX graph needs: shapes depend on shapes and never on values.

Promises: a class in `DENSE` gives the same output as its `SpeechEncoder`, and `DenseCTCHead` the same as a trained CTC
head, with the same weights, up to rounding; a clip's results do not depend on its neighbours or its padding. The
padding is computed too.
It does not know ONNX (see `asr_doge.models.export`).
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.granite_speech.modeling_granite_speech import (
    GraniteSpeechConformerAttention,
    GraniteSpeechConformerBlock,
    GraniteSpeechConformerConvModule,
)

from asr_doge.choices import CTCHeadType
from asr_doge.models.ctc_head import CTCHead
from asr_doge.models.encoders.base import SpeechEncoder, SpeechEncoderOutput, length_mask
from asr_doge.models.encoders.conformer_ctc import ParakeetSpeechEncoder
from asr_doge.models.encoders.granite_speech import GraniteSpeechEncoder, GraniteSpeechPlusEncoder
from asr_doge.models.encoders.wav2vec2 import HubertSpeechEncoder, Wav2Vec2SpeechEncoder, WavLMSpeechEncoder
from asr_doge.models.encoders.whisper import WhisperSpeechEncoder


class DenseEncoder(nn.Module, ABC):
    """The dense form of an encoder.

    Attributes:
        dynamic_axes: of the input features, those that may have any size.
        family: the encoder.
    """

    dynamic_axes: ClassVar[tuple[int, ...]] = (0, 1)

    def __init__(self, encoder: SpeechEncoder) -> None:
        super().__init__()
        self.family: Any = encoder

    @abstractmethod
    def forward(self, input_features: Tensor, input_lengths: Tensor) -> SpeechEncoderOutput:
        """See `SpeechEncoder.forward`, with CTC logits where the family has a head."""


class DenseGraniteSpeech(DenseEncoder):
    """Granite Speech on padded batches: attention blocks have full length, and padding is masked."""

    def forward(self, input_features: Tensor, input_lengths: Tensor) -> SpeechEncoderOutput:
        """`input_features` is `[B, T, 160]`."""
        encoder = self.family.encoder
        mask = length_mask(input_lengths, input_features.shape[1])
        hidden_states = encoder.input_linear(input_features)
        kept = [hidden_states] if 0 in self.family.concatenated_layers else []
        layers = cast(list[GraniteSpeechConformerBlock], list(encoder.layers))
        for index, layer in enumerate(layers, start=1):
            hidden_states = _block(layer, hidden_states, mask)
            if index == len(layers) // 2:
                hidden_states = hidden_states + encoder.out_mid(encoder.out(hidden_states).softmax(dim=-1))
            if index in self.family.concatenated_layers:
                kept.append(hidden_states)
        states = torch.cat([*kept, hidden_states], dim=-1)
        embeddings = self.family.projector(states.masked_fill(~mask[..., None], 0.0))
        lengths = self.family.output_lengths(input_lengths)
        real = length_mask(lengths, embeddings.shape[1])[..., None]
        return SpeechEncoderOutput(
            embeddings.masked_fill(~real, 0.0), lengths, encoder.out(hidden_states), input_lengths
        )


def _block(layer: GraniteSpeechConformerBlock, hidden_states: Tensor, mask: Tensor) -> Tensor:
    """`[B, T, hidden]` after a conformer block, which reads frames where `mask` `[B, T]` is True."""
    hidden_states = hidden_states + 0.5 * layer.ff1(hidden_states)
    hidden_states = hidden_states + _block_attention(layer.attn, hidden_states, mask)
    hidden_states = hidden_states + _convolution(layer.conv, hidden_states, mask)
    hidden_states = hidden_states + 0.5 * layer.ff2(hidden_states)
    normed: Tensor = layer.post_norm(hidden_states)
    return normed


def _block_attention(attention: GraniteSpeechConformerAttention, hidden_states: Tensor, mask: Tensor) -> Tensor:
    """Self-attention `[B, T, hidden]` within blocks, of frames where `mask` `[B, T]` is True."""
    batch, frames, _ = hidden_states.shape
    block, heads, size = attention.context_size, attention.num_heads, cast(int, attention.dim_head)
    normed = attention.pre_norm(hidden_states)
    query, key, value = (
        F.pad(part, (0, 0, 0, -frames % block)).reshape(-1, block, heads, size).transpose(1, 2)
        for part in (attention.to_q(normed), *attention.to_kv(normed).chunk(2, dim=-1))
    )  # [blocks, heads, block, d]
    first = attention.max_pos_emb - block
    falling = attention.rel_pos_emb.weight[first : first + 2 * block].flip(0)  # from the greatest query - key downwards
    bias = _shifted(query @ falling.T) * attention.scale
    real = F.pad(mask, (0, -frames % block)).reshape(-1, 1, 1, block)
    # Not infinity: blocks of padding alone would be NaN.
    bias = bias.masked_fill(~real, torch.finfo(bias.dtype).min)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=attention.scale)
    return attention.to_out(mixed.transpose(1, 2).reshape(batch, -1, heads * size)[:, :frames])


def _shifted(scores: Tensor) -> Tensor:
    """`[blocks, heads, block, 2 * block]` by distance to `[blocks, heads, block, block]` by key.

    Query c finds key r in column block - 1 - c + r: one further left for each query, where rows that are one column
    shorter put it.
    """
    blocks, heads, block, _ = scores.shape
    rows = scores.flatten(2)[..., block - 1 : block - 1 + block * (2 * block - 1)]
    return rows.reshape(blocks, heads, block, 2 * block - 1)[..., :block]


def _convolution(module: GraniteSpeechConformerConvModule, hidden_states: Tensor, mask: Tensor) -> Tensor:
    """The conformer's convolution module `[B, T, hidden]`, which reads zeros where `mask` `[B, T]` is False."""
    gated = module.glu(module.up_conv(module.norm(hidden_states).transpose(1, 2))).masked_fill(~mask[:, None], 0.0)
    mixed = module.silu(module.batch_norm(module.depth_conv(gated)))
    return module.down_conv(mixed).transpose(1, 2)


class DenseWhisper(DenseEncoder):
    """Whisper, whose input of 30 s is dense already."""

    dynamic_axes = (0,)

    def forward(self, input_features: Tensor, input_lengths: Tensor) -> SpeechEncoderOutput:
        """`input_features` is `[B, mels, 3000]`, and embeddings are of all 30 s."""
        if self.family.window == "clip":  # of all 30 s, which costs more but fits any clip
            states = self.family.clip_states(input_features, input_lengths)
        else:
            states = self.family.encoder(input_features).last_hidden_state
        lengths = self.family.output_lengths(input_lengths)
        real = length_mask(lengths, states.shape[1])[..., None]
        return SpeechEncoderOutput(states.masked_fill(~real, 0.0), lengths)


class DenseParakeet(DenseEncoder):
    """Parakeet CTC, which takes a mask already."""

    def forward(self, input_features: Tensor, input_lengths: Tensor) -> SpeechEncoderOutput:
        """`input_features` is `[B, T, mels]`."""
        return self.family.padded(input_features, input_lengths, self.family.has_ctc)


class DenseWav2Vec2(DenseEncoder):
    """Wav2Vec2, HuBERT and WavLM.

    The convolutions read all clips at once. Only the normalization after the first reads more than its frame's samples:
    here, the frames of each clip.
    """

    def forward(self, input_features: Tensor, input_lengths: Tensor) -> SpeechEncoderOutput:
        """`input_features` is `[B, samples]`."""
        samples = input_features.masked_fill(~length_mask(input_lengths, input_features.shape[1]), 0.0)
        hidden = F.pad(samples, (0, self.family.shortest - 1))[:, None]  # at least one frame, however short the batch
        layers = list(self.family.encoder.feature_extractor.conv_layers)
        if self.family.config.feat_extract_norm == "group":
            first = layers.pop(0)
            kernel, stride = first.conv.kernel_size[0], first.conv.stride[0]
            read = input_lengths.clamp(min=self.family.shortest)
            frames = torch.div(read - kernel, stride, rounding_mode="floor") + 1
            hidden = first.activation(_normalized(first.layer_norm, first.conv(hidden), frames))
        for layer in layers:
            hidden = layer(hidden)
        lengths = self.family.output_lengths(input_lengths)
        return self.family.attend(hidden.transpose(1, 2), lengths, self.family.has_ctc)


def _normalized(norm: nn.GroupNorm, hidden: Tensor, lengths: Tensor) -> Tensor:
    """`[B, C, T]`, each channel normalized over the first frames of its clip, of which there are `lengths` `[B]`."""
    mask, count = length_mask(lengths, hidden.shape[2])[:, None], lengths[:, None, None]
    mean = hidden.masked_fill(~mask, 0.0).sum(dim=2, keepdim=True) / count
    centred = hidden - mean
    variance = centred.masked_fill(~mask, 0.0).square().sum(dim=2, keepdim=True) / count
    return centred / (variance + norm.eps).sqrt() * norm.weight[:, None] + norm.bias[:, None]


class DenseCTCHead(nn.Module):
    """A trained CTC head of type `linear` or `conformer`.

    A `blstm` has no dense form: it would begin to read each clip in its padding.
    """

    types: ClassVar[tuple[CTCHeadType, ...]] = ("linear", "conformer")

    def __init__(self, head: CTCHead) -> None:
        super().__init__()
        self.head = head

    @classmethod
    def of(cls, head: Any) -> "DenseCTCHead | None":
        """The dense form of a head; None if it has none."""
        return cls(head) if isinstance(head, CTCHead) and head.settings.type in cls.types else None

    def forward(self, speech_embeddings: Tensor, speech_lengths: Tensor) -> Tensor:
        """Logits `[B, ceil(T' / stack), V]` of speech embeddings `[B, T', D]`; `speech_lengths` is `[B]`."""
        head = self.head
        batch, count, _ = speech_embeddings.shape
        mask = length_mask(speech_lengths, count)
        hidden = head.input_norm(speech_embeddings).masked_fill(~mask[..., None], 0.0)
        hidden = F.pad(hidden, (0, 0, 0, -count % head.stack))
        hidden = hidden.reshape(batch, -1, hidden.shape[2] * head.stack)
        mask = length_mask(head.output_lengths(speech_lengths), hidden.shape[1])
        blocks = cast(list[GraniteSpeechConformerBlock], list(head.blocks))
        if blocks:
            hidden = head.input(hidden)
        for block in blocks:
            hidden = _block(block, hidden, mask)
        logits: Tensor = head.output(hidden)
        return logits


DENSE: dict[str, type[DenseEncoder]] = {
    GraniteSpeechEncoder.model_type: DenseGraniteSpeech,
    GraniteSpeechPlusEncoder.model_type: DenseGraniteSpeech,
    ParakeetSpeechEncoder.model_type: DenseParakeet,
    HubertSpeechEncoder.model_type: DenseWav2Vec2,
    Wav2Vec2SpeechEncoder.model_type: DenseWav2Vec2,
    WavLMSpeechEncoder.model_type: DenseWav2Vec2,
    WhisperSpeechEncoder.model_type: DenseWhisper,
}
"""All families except two: PyTorch's exporter fails on SEANet, and did not trace Granite Speech 5 within minutes."""
