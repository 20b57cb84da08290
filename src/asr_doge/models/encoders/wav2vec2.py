"""Wav2Vec2, HuBERT and WavLM: self-supervised encoders of the waveform, with a CTC head where the checkpoint has one.

Promises: the same states and logits as `Wav2Vec2ForCTC`, `HubertForCTC` and `WavLMForCTC`, for a clip alone and in any
padded batch. Upstream's base models normalize the first convolution's output over the whole padded row, so a clip's
result depends on its neighbours; here the convolutions read one clip at a time, and nothing else reads padding.
Upstream's optional language adapters (`add_adapter`) and normalized positions (`conv_pos_batch_norm`) are refused.
Source: transformers `wav2vec2`, `hubert`, `wavlm`; https://arxiv.org/abs/2006.11477, 2106.07447, 2110.13900.
"""

import copy
import json
import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import HubertModel, PreTrainedConfig, PreTrainedModel, Wav2Vec2Model, WavLMModel
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from asr_doge.errors import CheckpointError
from asr_doge.models.checkpoints import Reference
from asr_doge.models.encoders.base import EncoderFamily, SpeechEncoderOutput, length_mask
from asr_doge.models.encoders.vocabularies import blank_first, read_characters, vocabulary_of
from asr_doge.models.feature_extraction_asr_doge import WaveformFeatureExtractor

OLD_NORMS = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
"""Names of the two parts of a weight-normalized weight: before torch 2.0, and today."""


class Wav2Vec2SpeechEncoder(EncoderFamily):
    """Wav2Vec2: `[B, samples]` at 16 kHz to `[B, T', hidden]` at 50 Hz, and CTC logits at the same rate."""

    model_type = "wav2vec2"
    checkpoint_keys = r"(?:(?:wav2vec2|hubert|wavlm)\.)?((?:feature_extractor|feature_projection|encoder)\..+)"
    unread_settings = ("ctc_*", "num_negatives", "*codevector*", "*_quantizer_*")
    ctc_layers = ("lm_head",)
    upstream: ClassVar[type[PreTrainedModel]] = Wav2Vec2Model

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        # The batch normalization would make values of the padding, which the convolution after it reads.
        for setting in ("add_adapter", "conv_pos_batch_norm"):
            if getattr(config, setting, False):
                raise CheckpointError(f"a {self.model_type} encoder with {setting} is not supported")
        self.config = config
        self.encoder: Any = self.upstream(_without_masking(config))
        self.hidden_size: int = config.hidden_size
        self.frame_rate_hz = 16_000 / math.prod(config.conv_stride)
        self.vocabulary = vocabulary_of(config)
        self.has_ctc = self.vocabulary is not None
        if self.has_ctc:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
            self.ctc_frame_rate_hz = self.frame_rate_hz

    def forward(
        self, input_features: Tensor, input_lengths: Tensor, return_ctc_logits: bool = False
    ) -> SpeechEncoderOutput:
        """See `SpeechEncoder.forward`; `input_features` is `[B, samples]`."""
        clips = [
            self._convolved(clip[:samples])
            for clip, samples in zip(input_features, input_lengths.tolist(), strict=True)
        ]
        return self.attend(pad_sequence(clips, batch_first=True), self.output_lengths(input_lengths), return_ctc_logits)

    def attend(self, frames: Tensor, lengths: Tensor, return_ctc_logits: bool) -> SpeechEncoderOutput:
        """The output of all that follows the convolutions.

        Args:
            frames: `[B, T', conv]` of the convolutions.
            lengths: `[B]`, valid frames of each clip.
            return_ctc_logits: as in `forward`.
        """
        mask = length_mask(lengths, frames.shape[1])
        projected = self.encoder.feature_projection(frames)
        states: Tensor = projected[0] if isinstance(projected, tuple) else projected  # some also return their input
        states = self.encoder.encoder(states, attention_mask=mask).last_hidden_state
        states = states.masked_fill(~mask[..., None], 0.0)
        output = SpeechEncoderOutput(states, lengths)
        if return_ctc_logits:
            if not self.has_ctc:
                raise ValueError(f"this {self.model_type} encoder has no CTC head")
            output.ctc_logits = blank_first(self.lm_head(states), self.config.pad_token_id)
            output.ctc_lengths = lengths
        return output

    def _convolved(self, clip: Tensor) -> Tensor:
        """Frames `[T', conv]` of a clip `[samples]`; one that is shorter than a frame is followed by zeros."""
        padded = F.pad(clip, (0, max(0, self.shortest - len(clip))))
        frames: Tensor = self.encoder.feature_extractor(padded[None])[0].T
        return frames

    @property
    def shortest(self) -> int:
        """Samples in the receptive field of one frame."""
        samples = 1
        for kernel, stride in zip(reversed(self.config.conv_kernel), reversed(self.config.conv_stride), strict=True):
            samples = (samples - 1) * stride + kernel
        return samples

    def output_lengths(self, input_lengths: Tensor) -> Tensor:
        """Frames after the convolutions, at least one."""
        lengths = input_lengths
        for kernel, stride in zip(self.config.conv_kernel, self.config.conv_stride, strict=True):
            lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
        return lengths.clamp(min=1)

    def last_layers(self, count: int) -> list[nn.Module]:
        """The last transformer layers, and the norm after them if there is one."""
        after = [self.encoder.encoder.layer_norm] if self.config.do_stable_layer_norm else []
        return [*list(self.encoder.encoder.layers)[-count:], *after]

    @staticmethod
    def complete_config(config: PreTrainedConfig, reference: Reference) -> None:
        """Add the vocabulary of the head, and whether waveforms are normalized."""
        if any(name.endswith("ForCTC") for name in config.architectures or ()):
            read_characters(config, reference)
        if not hasattr(config, "do_normalize"):
            path = reference.file("preprocessor_config.json")
            settings = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
            config.do_normalize = bool(settings.get("do_normalize", True))
            config.sampling_rate = int(settings.get("sampling_rate", 16_000))

    @classmethod
    def rename_checkpoint_key(cls, key: str) -> str | None:
        """The model's weights under `encoder.`, those of the CTC head unchanged; None for those of pretraining only."""
        if key.startswith("lm_head."):
            return key
        upstream_key = super().rename_checkpoint_key(key)
        if upstream_key is None:
            return None
        owner, _, name = upstream_key.rpartition(".")
        return f"encoder.{owner}.{OLD_NORMS.get(name, name)}"

    @staticmethod
    def feature_extractor(config: PreTrainedConfig) -> WaveformFeatureExtractor:
        """Samples, normalized as the checkpoint's own extractor would."""
        return WaveformFeatureExtractor(
            sampling_rate=getattr(config, "sampling_rate", 16_000), do_normalize=getattr(config, "do_normalize", True)
        )


class HubertSpeechEncoder(Wav2Vec2SpeechEncoder):
    """HuBERT; see `Wav2Vec2SpeechEncoder`."""

    model_type = "hubert"
    upstream = HubertModel


class WavLMSpeechEncoder(Wav2Vec2SpeechEncoder):
    """WavLM; see `Wav2Vec2SpeechEncoder`."""

    model_type = "wavlm"
    upstream = WavLMModel

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        for layer in self.encoder.encoder.layers:
            layer.attention.__class__ = _WavLMAttention


class _WavLMAttention(WavLMAttention):
    """Upstream's attention, with its matrices called as layers.

    Upstream passes their weights to torch's function: LoRA then learns nothing, and 8-bit weights fail.
    """

    def torch_multi_head_self_attention(  # type: ignore[override]  # without the weights, which nothing reads
        self, hidden_states: Tensor, attention_mask: Tensor | None, gated_position_bias: Tensor
    ) -> tuple[Tensor, None]:
        """Self-attention `[B, T, D]` with a bias `[B * heads, T, T]`, of frames where the mask `[B, T]` is True."""
        batch, frames, _ = hidden_states.shape
        query, key, value = (
            projection(hidden_states).view(batch, frames, self.num_heads, self.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        bias = gated_position_bias.view(batch, self.num_heads, frames, frames)
        if attention_mask is not None:
            bias = bias.masked_fill(~attention_mask[:, None, None], -math.inf)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, frames, -1)), None


def _without_masking(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration without upstream's masking in training, whose embedding some checkpoints lack."""
    config = copy.deepcopy(config)
    config.apply_spec_augment, config.mask_time_prob, config.mask_feature_prob = False, 0.0, 0.0
    return config
