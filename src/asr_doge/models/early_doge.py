"""The early layout of Doge, of SmallDoge's first uploads, which transformers' own `doge` does not load.

Promises: for such a checkpoint, the logits of the code it was published with. Only its attention differs from today's
`doge`: queries and keys are not normalized; each query head, not each key-value head, has its own bias on the keys (`A`
is `[heads]`, `dt_proj` goes from `kv_heads * head_dim` to `heads`); with more than `keep_window_size` keys, those with
the largest biases of each head are kept.
It reads no files (see `asr_doge.models.language_model`), and does not support the early experts (`queries_proj`,
`keys`) and `dynamic_mask_ratio`, which the publisher's later code of this layout no longer reads.
Source: https://github.com/SmallDoges/small-doge, `src/small_doge/models/doge/modeling_doge.py`;
https://github.com/huggingface/transformers/pull/38573.
"""

from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, DogeConfig, DogeForCausalLM
from transformers.models.doge.modeling_doge import (
    ALL_ATTENTION_FUNCTIONS,
    DogeAttention,
    apply_rotary_pos_emb,
    eager_attention_forward,
)


class EarlyDogeConfig(DogeConfig):
    """A `DogeConfig` whose checkpoint has the early layout."""

    model_type = "early_doge"

    @classmethod
    def of(cls, config: DogeConfig) -> "EarlyDogeConfig":
        """The early layout of a configuration; `hidden_bias`, in early files, is the bias of attention and MLP."""
        values = config.to_dict()
        for name in ("model_type", "auto_map", "dynamic_mask_ratio"):
            values.pop(name, None)
        bias = values.pop("hidden_bias", None)
        return cls(**values | ({"attention_bias": bias, "mlp_bias": bias} if bias is not None else {}))


class EarlyDogeAttention(DogeAttention):
    """Attention with a bias on the keys, computed from their values, for each query head."""

    def __init__(self, config: EarlyDogeConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        del self.q_norm, self.k_norm
        self.A = nn.Parameter(torch.zeros(config.num_attention_heads))
        self.dt_proj = nn.Linear(self.v_proj.out_features, config.num_attention_heads, bias=config.attention_bias)

    def forward(  # type: ignore[override]  # upstream's annotation says three values, and it returns two
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As `DogeAttention.forward`: `[B, N, H]` to `[B, N, H]`, and the attention weights where they are computed."""
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        queries, keys, values = (
            project(hidden_states).view(heads).transpose(1, 2) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        queries, keys = apply_rotary_pos_emb(queries, keys, *position_embeddings)
        if past_key_values is not None:
            assert self.layer_idx is not None
            keys, values = past_key_values.update(keys, values, self.layer_idx)
        bias = torch.exp(self.A * F.softplus(self.dt_proj(values.transpose(1, 2).flatten(2)))).transpose(1, 2)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        outputs, weights = attend(
            self,
            queries,
            keys,
            values,
            attention_mask=self.prepare_dynamic_mask(hidden_states, bias, self.keep_window_size, attention_mask),
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **options,
        )
        return self.o_proj(outputs.flatten(2)), weights


class EarlyDogeForCausalLM(DogeForCausalLM):
    """`DogeForCausalLM` with the early attention."""

    config_class = EarlyDogeConfig

    def __init__(self, config: EarlyDogeConfig) -> None:
        super().__init__(config)
        for number, layer in enumerate(self.model.layers):
            layer.self_attn = EarlyDogeAttention(config, number)
        self.post_init()


def stored_layout(config: DogeConfig, shapes: dict[str, Collection[int]]) -> tuple[DogeConfig, list[str]]:
    """The configuration that fits a checkpoint's tensors, and the tensors that fit neither layout.

    Args:
        config: of the checkpoint, as it states it.
        shapes: of the stored tensors, by today's names.

    Returns:
        An `EarlyDogeConfig` for the early layout, else `config`; and the tensors, with their shapes, that fit neither
        layout. Missing tensors are not included.
    """
    attention = {name: list(shape) for name, shape in shapes.items() if ".self_attn." in name}
    has_norms = any(name.endswith((".q_norm.weight", ".k_norm.weight")) for name in attention)
    rows = config.num_key_value_heads if has_norms else config.num_attention_heads
    assert rows is not None  # transformers fills it in
    unlike = sorted(
        f"{name} {shape}"
        for name, shape in attention.items()
        if name.endswith((".A", ".dt_proj.weight")) and shape[:1] != [rows]
    )
    is_early = bool(attention) and not has_norms
    return EarlyDogeConfig.of(config) if is_early and not unlike else config, unlike
