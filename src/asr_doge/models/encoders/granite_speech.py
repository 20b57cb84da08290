"""Granite Speech: IBM's conformer encoder with its q-former projector, and nothing else of the checkpoint.

Promises: the same speech embeddings as `GraniteSpeechForConditionalGeneration.get_audio_features`, for a clip alone and
in any padded batch, at no cost for the padding. Upstream's forward takes no length mask: its attention, depthwise
convolution and q-former read the padding, so a clip's result depends on its neighbours. This module runs upstream's
layers, with its weights, on the packed frames of all clips: most layers read single frames, attention reads blocks
within a clip, and the convolution reads zeros between clips. `compile` makes fewer and larger kernels of each block,
for a GPU.

It does not know the language model of the full checkpoint; none of its 2.5B parameters is read or allocated.
Source: transformers `granite_speech` and `granite_speech_plus`;
    https://huggingface.co/ibm-granite/granite-speech-3.3-2b.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GraniteSpeechConfig, PreTrainedConfig
from transformers.models.granite_speech.modeling_granite_speech import (
    GraniteSpeechConformerAttention,
    GraniteSpeechConformerBlock,
    GraniteSpeechConformerConvModule,
    GraniteSpeechConformerDepthWiseConv1d,
    GraniteSpeechCTCEncoder,
    GraniteSpeechEncoderProjector,
)
from transformers.models.granite_speech_plus.modeling_granite_speech_plus import (
    GraniteSpeechPlusCTCEncoder,
    GraniteSpeechPlusEncoderProjector,
)

from asr_doge.audio.log_mel import FRAME_RATE_HZ
from asr_doge.models.encoders.base import EncoderFamily, SpeechEncoderOutput
from asr_doge.models.feature_extraction_asr_doge import LogMelFeatureExtractor


class GraniteSpeechEncoder(EncoderFamily):
    """Conformer and q-former projector: `[B, T, 160]` at 50 Hz to `[B, T', 2048]` at 10 Hz (published sizes)."""

    model_type = "granite_speech"
    checkpoint_keys = r"(?:model\.)?((?:encoder|projector)\..+)"  # transformers 5 adds `model.`
    unread_settings = ("text_config", "has_lora_adapter")  # the width of the embeddings is in the projector's weights
    has_ctc = True
    upstream: ClassVar[tuple[type[nn.Module], type[nn.Module]]] = (
        GraniteSpeechCTCEncoder,
        GraniteSpeechEncoderProjector,
    )

    def __init__(self, config: GraniteSpeechConfig) -> None:
        super().__init__()
        self.config = config
        encoder, projector = self.upstream
        self.encoder: Any = encoder(config.encoder_config)
        self.projector: Any = projector(config)
        self.hidden_size: int = cast(PreTrainedConfig, config.text_config).hidden_size
        self.embeddings_per_window: int = config.window_size // config.downsample_rate
        self.frame_rate_hz = FRAME_RATE_HZ * self.embeddings_per_window / config.window_size
        self.ctc_frame_rate_hz = float(FRAME_RATE_HZ)
        self._run_block: RunBlock = run_block

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the conformer block, once for all blocks and lengths; arguments as of `torch.compile`.

        The whole forward, which `nn.Module.compile` would take, has a loop of 16 blocks and lengths on the CPU.
        """
        self._run_block = torch.compile(run_block, *args, **({"dynamic": True} | kwargs))

    def forward(
        self, input_features: Tensor, input_lengths: Tensor, return_ctc_logits: bool = False
    ) -> SpeechEncoderOutput:
        """See `SpeechEncoder.forward`; `input_features` is `[B, T, 160]`."""
        lengths = input_lengths.cpu()  # the only wait for an accelerator
        states = self._layer_states(input_features, lengths)
        output = SpeechEncoderOutput(self.project(states, lengths), self.output_lengths(input_lengths))
        if return_ctc_logits:
            output.ctc_logits, output.ctc_lengths = self.encoder.out(self.last_states(states)), input_lengths
        return output

    @property
    def concatenated_layers(self) -> frozenset[int]:
        """Layers (from 1; 0 is the input of the first) whose states the projector reads before the last ones."""
        return frozenset(getattr(self.config.encoder_config, "cat_hidden_layers", None) or ())

    def last_states(self, states: Tensor) -> Tensor:
        """The last layer's `[..., hidden]` of what the projector reads, `[..., layers * hidden]`."""
        return states[..., -self.encoder.config.hidden_dim :]

    def project(self, hidden_states: Tensor, input_lengths: Tensor) -> Tensor:
        """Speech embeddings `[B, T', D]` of states `[B, T, layers * hidden]`; `input_lengths` is `[B]`."""
        batch, num_frames, _ = hidden_states.shape
        lengths, device = input_lengths.cpu(), hidden_states.device
        packed = _PackedLayout.padded(lengths, num_frames, device).pack(hidden_states.flatten(0, 1))
        # A clip's last window is completed with zeros, as upstream does for a clip alone.
        windows = _PackedLayout(lengths, _round_up(lengths, self.config.window_size), device).unpack(packed)
        embeddings = self.projector(windows[None])[0]
        most = -(-num_frames // self.config.window_size) * self.embeddings_per_window
        padded = _PackedLayout.padded(self.output_lengths(lengths), most, device).unpack(embeddings)
        return padded.view(batch, most, -1)

    def ctc_logits(self, input_features: Tensor, input_lengths: Tensor) -> Tensor:
        """CTC logits `[B, T, V]` alone, without running the projector; arguments as in `forward`."""
        return self.encoder.out(self.conformer(input_features, input_lengths))

    def output_lengths(self, input_lengths: Tensor) -> Tensor:
        """Three embeddings (published sizes) for each window of 15 frames begun."""
        window = self.config.window_size
        return (input_lengths + window - 1) // window * self.embeddings_per_window

    def last_layers(self, count: int) -> list[nn.Module]:
        """The last conformer blocks and the projector; not the CTC head, so that drafts stay the same."""
        return [*list(self.encoder.layers)[-count:], self.projector]

    @staticmethod
    def feature_extractor(config: PreTrainedConfig) -> LogMelFeatureExtractor:
        """The published log-mel front end, whatever `config` is."""
        return LogMelFeatureExtractor()

    def ctc_text(self, ids: Sequence[int]) -> str:
        """Granite's CTC ids are character codes."""
        return "".join(map(chr, ids))

    def ctc_ids(self, text: str) -> list[int]:
        """See `ctc_text`; id 0 is the blank."""
        return [ord(character) for character in text if 0 < ord(character) < self.encoder.out.out_features]

    def conformer(self, input_features: Tensor, input_lengths: Tensor) -> Tensor:
        """Conformer states `[B, T, hidden]`, zero at padded frames.

        Args:
            input_features: `[B, T, 160]`.
            input_lengths: `[B]`.
        """
        return self.last_states(self._layer_states(input_features, input_lengths))

    def _layer_states(self, input_features: Tensor, input_lengths: Tensor) -> Tensor:
        """The projector's input, `[B, T, layers * hidden]`; arguments as in `conformer`."""
        batch, num_frames, _ = input_features.shape
        lengths = input_lengths.cpu()
        frames = _PackedLayout.padded(lengths, num_frames, input_features.device)
        # [N, hidden] up to the end
        hidden_states = self.encoder.input_linear(frames.pack(input_features.flatten(0, 1)))
        layers = cast(list[GraniteSpeechConformerBlock], list(self.encoder.layers))
        run = ConformerRunner(lengths, self.encoder.attention_dists, layers[0], self._run_block)
        kept = [hidden_states] if 0 in self.concatenated_layers else []
        for index, layer in enumerate(layers, start=1):
            hidden_states = run(layer, hidden_states)
            if index == len(layers) // 2:  # self-conditioning on the CTC posteriors half way
                posteriors = self.encoder.out(hidden_states).softmax(dim=-1)
                hidden_states = hidden_states + self.encoder.out_mid(posteriors)
            if index in self.concatenated_layers:
                kept.append(hidden_states)
        return frames.unpack(torch.cat([*kept, hidden_states], dim=1)).view(batch, num_frames, -1)


class GraniteSpeechPlusEncoder(GraniteSpeechEncoder):
    """Granite Speech Plus (4.1), whose projector reads the states of several layers side by side."""

    model_type = "granite_speech_plus"
    upstream = (GraniteSpeechPlusCTCEncoder, GraniteSpeechPlusEncoderProjector)


class BlockIndices(NamedTuple):
    """Gather indices of the `N` packed frames for attention in blocks and for the convolution, on their device.

    Attributes:
        distances: `[2 * block]`, from `_distances`.
        block_sources: `[S]`, the frame in each row if clips are padded to whole blocks; in padding, the clip's last
            one.
        block_rows: `[N]`, the row of each frame.
        block_mask: `[blocks, 1, 1, block]`, True at frames.
        conv_sources: `[S']`, the frame in each row if every clip is followed by as many rows of padding as the
            convolution reaches.
        conv_rows: `[N]`, the row of each frame.
        conv_padding: `[S', 1]`, True at these rows of padding.
    """

    distances: Tensor
    block_sources: Tensor
    block_rows: Tensor
    block_mask: Tensor
    conv_sources: Tensor
    conv_rows: Tensor
    conv_padding: Tensor


RunBlock = Callable[[GraniteSpeechConformerBlock, Tensor, BlockIndices], Tensor]


def run_block(layer: GraniteSpeechConformerBlock, hidden_states: Tensor, indices: BlockIndices) -> Tensor:
    """Packed frames `[N, hidden]` after one of upstream's conformer blocks."""
    hidden_states = hidden_states + 0.5 * layer.ff1(hidden_states)
    hidden_states = hidden_states + _block_attention(layer.attn, hidden_states, indices)
    hidden_states = hidden_states + _convolution(layer.conv, hidden_states, indices)
    hidden_states = hidden_states + 0.5 * layer.ff2(hidden_states)
    return cast(Tensor, layer.post_norm(hidden_states))


class ConformerRunner:
    """Runs upstream's conformer blocks on the real frames of all clips of a batch, one clip after another.

    Args:
        lengths: `[B]`, frames of each clip.
        attention_dists: `[context, context]`, as upstream computes it: the index of each (query, key) into the relative
            position embedding. Attention is local to blocks of `context` frames.
        layer: any of the blocks, for the reach of its convolution.
        run: `run_block`, or its compiled form.
    """

    def __init__(
        self,
        lengths: Tensor,
        attention_dists: Tensor,
        layer: GraniteSpeechConformerBlock,
        run: RunBlock = run_block,
    ) -> None:
        # A batch whose longest clip is shorter than a block needs a shorter one only: the frames left out would all be
        # masked.
        lengths, device = lengths.cpu(), attention_dists.device
        block = min(len(attention_dists), int(lengths.max()))
        blocks = _PackedLayout(lengths, _round_up(lengths, block), device)
        gapped = _PackedLayout(lengths, lengths + max(layer.conv.depth_conv.padding), device)
        self._run = run
        self._indices = BlockIndices(
            _distances(attention_dists[:block, :block]),
            blocks.sources(),
            blocks.rows,
            blocks.mask().view(-1, 1, 1, block),
            gapped.sources(),
            gapped.rows,
            ~gapped.mask()[:, None],
        )

    def __call__(self, layer: GraniteSpeechConformerBlock, hidden_states: Tensor) -> Tensor:
        """Packed frames `[N, hidden]` after one block."""
        return self._run(layer, hidden_states, self._indices)


class _PackedLayout:
    """A layout of `S` rows with a slot for each clip; a clip's frames, `N` of all clips, are at its slot's start.

    Args:
        lengths: `[B]`, frames of each clip; on the CPU, so that nothing waits for an accelerator.
        sizes: `[B]`, rows of each slot; likewise.
        device: of the frames.
    """

    def __init__(self, lengths: Tensor, sizes: Tensor, device: torch.device) -> None:
        self._lengths, self._sizes = lengths, sizes
        spare = sizes - lengths
        before = (spare.cumsum(0) - spare).repeat_interleave(lengths)
        self.rows = (torch.arange(len(before)) + before).to(device, non_blocking=True)
        """`[N]`, the row of each frame."""
        self.num_rows = int(sizes.sum())

    @classmethod
    def padded(cls, lengths: Tensor, size: int, device: torch.device) -> "_PackedLayout":
        """The layout of a padded batch `[B, size]`, flattened."""
        return cls(lengths, torch.full_like(lengths, size), device)

    def unpack(self, packed: Tensor) -> Tensor:
        """The layout `[S, D]` of packed frames `[N, D]`, zero elsewhere."""
        return packed.new_zeros(self.num_rows, packed.shape[1]).index_copy(0, self.rows, packed)

    def pack(self, unpacked: Tensor) -> Tensor:
        """The frames `[N, D]` of a layout `[S, D]`."""
        return unpacked.index_select(0, self.rows)

    def sources(self) -> Tensor:
        """`[S]`, the frame in each row; past a clip's end its last one, so that no other clip is read."""
        first, start = (counts.cumsum(0) - counts for counts in (self._lengths, self._sizes))
        place = torch.arange(self.num_rows) - start.repeat_interleave(self._sizes)
        last = (self._lengths - 1).repeat_interleave(self._sizes)
        sources = first.repeat_interleave(self._sizes) + place.minimum(last)
        return sources.to(self.rows.device, non_blocking=True)

    def mask(self) -> Tensor:
        """`[S]`, True at frames."""
        return torch.zeros(self.num_rows, dtype=torch.bool, device=self.rows.device).index_fill(0, self.rows, True)


def _round_up(lengths: Tensor, size: int) -> Tensor:
    """`lengths` rounded up to multiples of `size`."""
    return (lengths + size - 1) // size * size


def padded_rows(packed: Tensor, mask: Tensor) -> Tensor:
    """`[B, T, D]`, zero where `mask` `[B, T]` is False and elsewhere the rows of `packed` `[N, D]`."""
    padded = packed.new_zeros(*mask.shape, packed.shape[1])
    padded[mask] = packed
    return padded


def _distances(of_pairs: Tensor) -> Tensor:
    """`[2 * block]` indices into the relative position embedding, from the greatest distance query - key downwards.

    Args:
        of_pairs: `[block, block]`, the index of each (query, key), which depends on their distance alone.
    """
    falling = torch.cat([of_pairs[:, 0].flip(0), of_pairs[0, 1:]])
    return F.pad(falling, (0, 1))  # to an even width, for aligned rows; the last column is never looked at


def _block_attention(
    attention: GraniteSpeechConformerAttention, hidden_states: Tensor, indices: BlockIndices
) -> Tensor:
    """Self-attention `[N, hidden]` within blocks of one clip, with Shaw's relative positions."""
    blocks, block = len(indices.block_mask), indices.block_mask.shape[-1]
    shape = (blocks, block, attention.num_heads, cast(int, attention.dim_head))
    normed = attention.pre_norm(hidden_states)
    # Rows past a clip's end repeat its last frame: as keys they are masked, as queries they are not read.
    query = attention.to_q(normed).index_select(0, indices.block_sources).view(shape)
    key, value = attention.to_kv(normed).index_select(0, indices.block_sources).chunk(2, dim=-1)
    bias = _relative_bias(query, attention.rel_pos_emb(indices.distances) * attention.scale)
    bias = _masked(bias, indices.block_mask)  # every block has a frame to attend to
    # [blocks, heads, block, d]
    query, key, value = (part.view(shape).transpose(1, 2) for part in (query, key, value))
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=attention.scale)
    mixed = mixed.transpose(1, 2).reshape(blocks * block, -1)
    return attention.dropout(attention.to_out(mixed.index_select(0, indices.block_rows)))


def _masked(bias: Tensor, mask: Tensor) -> Tensor:
    """`bias` where `mask` is True, minus infinity elsewhere.

    In place on the CPU, where allocating takes longest; a compiler would copy all of what `bias` is a view of.
    """
    if bias.device.type == "cpu" and not torch.compiler.is_compiling():
        return bias.masked_fill_(~mask, float("-inf"))
    return torch.where(mask, bias, float("-inf"))


def _relative_bias(query: Tensor, positions: Tensor) -> Tensor:
    """The relative positions' part of the attention scores, `[blocks, heads, block, block]`.

    Each query is multiplied with each distance's embedding once; upstream makes an embedding for every pair of
    positions.

    Args:
        query: `[blocks, block, heads, d]`.
        positions: `[2 * block, d]`, embeddings of the distances of `_distances`.
    """
    scores = (query @ positions.T).contiguous()
    blocks, block, heads, width = scores.shape
    # Query c finds key r at distance c - r, in column block - 1 - (c - r): one further left for each query.
    strides = (block * heads * width, width, heads * width - 1, 1)
    return scores.as_strided((blocks, heads, block, block), strides, block - 1)


def _convolution(module: GraniteSpeechConformerConvModule, hidden_states: Tensor, indices: BlockIndices) -> Tensor:
    """The conformer's convolution module `[N, hidden]`; around each clip it reads zeros, as for a clip alone."""
    gated = F.glu(_pointwise(module.up_conv, module.norm(hidden_states)), dim=-1)
    spread = gated.index_select(0, indices.conv_sources).masked_fill_(indices.conv_padding, 0.0)
    mixed = _depthwise(module.depth_conv, spread).index_select(0, indices.conv_rows)
    return module.dropout(_pointwise(module.down_conv, module.silu(module.batch_norm(mixed))))


def _pointwise(layer: nn.Module, frames: Tensor) -> Tensor:
    """A convolution of width 1 (or the linear layer that quantization made of it) on frames `[N, C]`."""
    if isinstance(layer, nn.Conv1d):
        return F.linear(frames, layer.weight.squeeze(-1), layer.bias)
    return layer(frames)


def _depthwise(module: GraniteSpeechConformerDepthWiseConv1d, frames: Tensor) -> Tensor:
    """The depthwise convolution on frames `[S, C]`.

    On the CPU as a sum of shifted products: torch's own takes twice as long there. Compiled likewise: the sum becomes
    one kernel with what is before and after it, while torch's own copies the frames to another layout and back.
    """
    if frames.device.type != "cpu" and not torch.compiler.is_compiling():
        return module(frames.T[None])[0].T
    taps = module.conv.weight.squeeze(1).T.contiguous()  # [kernel, C]
    padded = F.pad(frames, (0, 0, *module.padding))
    if torch.compiler.is_compiling():  # a view of memory: what makes the frames is then not computed again for each tap
        padded = padded.as_strided(padded.shape, padded.stride())
    mixed = padded[: len(frames)] * taps[0]
    for shift, tap in enumerate(taps[1:], start=1):
        mixed.addcmul_(padded[shift : shift + len(frames)], tap)
    return mixed
