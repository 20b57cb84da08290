"""Early Doge checkpoints as they were uploaded, and their forward pass restated in numpy at float64.

Written from the publisher's own source (SmallDoges/small-doge, `src/small_doge/models/modeling_doge.py` for the names,
`src/small_doge/models/doge/modeling_doge.py` for the arithmetic), with loops where it has tensors; nothing of ours or
of transformers is in it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from tests.models import tiny

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Shape:
    """What the uploads differ in."""

    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 8
    layers: int = 2
    intermediate: int = 48
    vocabulary: int = 320
    window: int = 2048
    is_tied: bool = True
    has_bias: bool = False
    positions: int = 2048

    @property
    def hidden(self) -> int:
        return self.heads * self.head_dim


def random_weights(shape: Shape, seed: int = 0) -> dict[str, Array]:
    """Tensors under the names and with the shapes of the uploads; every one of them matters to the result."""
    rng = np.random.default_rng(seed)

    def normal(*size: int) -> Array:
        return rng.normal(0.0, 0.3, size)

    sizes = {
        "self_attn.q_proj": (shape.hidden, shape.hidden),
        "self_attn.k_proj": (shape.kv_heads * shape.head_dim, shape.hidden),
        "self_attn.v_proj": (shape.kv_heads * shape.head_dim, shape.hidden),
        "self_attn.dt_proj": (shape.heads, shape.kv_heads * shape.head_dim),
        "self_attn.o_proj": (shape.hidden, shape.hidden),
        "feed_forward.gate_proj": (shape.intermediate, shape.hidden),
        "feed_forward.up_proj": (shape.intermediate, shape.hidden),
        "feed_forward.down_proj": (shape.hidden, shape.intermediate),
    }
    weights = {
        "model.word_embed.weight": normal(shape.vocabulary, shape.hidden),
        "model.final_layernorm.weight": 1 + normal(shape.hidden),
    }
    for layer in range(shape.layers):
        place = f"model.layers.{layer}."
        for name, size in sizes.items():
            weights[f"{place}{name}.weight"] = normal(*size)
            if shape.has_bias:
                weights[f"{place}{name}.bias"] = normal(size[0])
        for name in ("pre_layernorm", "pre_residual", "post_layernorm", "post_residual"):
            weights[f"{place}{name}.weight"] = 1 + normal(shape.hidden)
        weights[f"{place}self_attn.A"] = normal(shape.heads)
    if not shape.is_tied:
        weights["lm_head.weight"] = normal(shape.vocabulary, shape.hidden)
    return weights


def published_settings(shape: Shape) -> dict[str, object]:
    """A config.json of that age."""
    return {
        "architectures": ["DogeForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_doge.DogeConfig",
            "AutoModelForCausalLM": "modeling_doge.DogeForCausalLM",
        },
        "model_type": "doge",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "hidden_bias": shape.has_bias,
        "hidden_dropout": 0.0,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "dynamic_mask_ratio": 0.0,
        "keep_window_size": shape.window,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-06,
        "max_position_embeddings": shape.positions,
        "rope_theta": 10000.0,
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": shape.positions, "rope_type": "dynamic"},
        "is_moe": False,
        "num_experts": 2048,
        "num_experts_per_tok": 8,
        "expert_retrieval_size": 64,
        "tie_word_embeddings": shape.is_tied,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "torch_dtype": "float32",
        "transformers_version": "4.48.3",
        "use_cache": True,
    }


def save(weights: dict[str, Array], shape: Shape, folder: Path) -> Path:
    """An upload, with a tokenizer beside it."""
    folder.mkdir(parents=True)
    save_file({name: weight.astype(np.float32) for name, weight in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(published_settings(shape)))
    tiny.tokenizer().save_pretrained(folder)
    return folder


def as_stored(weights: dict[str, Array]) -> dict[str, Array]:
    """The values that come back from a file of single precision."""
    return {name: weight.astype(np.float32).astype(np.float64) for name, weight in weights.items()}


def logits(weights: dict[str, Array], shape: Shape, ids: Sequence[int]) -> Array:
    """Next-token logits `[N, V]` of one text, all of it read at once."""
    states = weights["model.word_embed.weight"][list(ids)]
    for layer in range(shape.layers):
        own = {
            name.removeprefix(f"model.layers.{layer}."): weight
            for name, weight in weights.items()
            if name.startswith(f"model.layers.{layer}.")
        }
        attended = _attend(own, shape, _normalize(states, own["pre_layernorm.weight"]))
        states = own["pre_residual.weight"] * states + attended
        inner = _normalize(states, own["post_layernorm.weight"])
        gate = _linear(own, "feed_forward.gate_proj", inner)
        product = gate / (1 + np.exp(-gate)) * _linear(own, "feed_forward.up_proj", inner)
        states = own["post_residual.weight"] * states + _linear(own, "feed_forward.down_proj", product)
    head = weights["model.word_embed.weight" if shape.is_tied else "lm_head.weight"]
    return np.asarray(_normalize(states, weights["model.final_layernorm.weight"]) @ head.T)


def _linear(weights: dict[str, Array], name: str, inputs: Array) -> Array:
    return np.asarray(inputs @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0))


def _normalize(states: Array, weight: Array) -> Array:
    return np.asarray(weight * states / np.sqrt(np.square(states).mean(axis=-1, keepdims=True) + 1e-6))


def _rotate(vector: Array, position: int) -> Array:
    """Rotary position of one head's query or key; below the longest text, dynamic scaling leaves it alone."""
    half = len(vector) // 2
    angles = position / 10000.0 ** (np.arange(half) * 2 / len(vector))
    first, second = vector[:half], vector[half:]
    return np.concatenate(
        [first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)]
    )


def _attend(weights: dict[str, Array], shape: Shape, inputs: Array) -> Array:
    count, size = len(inputs), shape.head_dim
    queries = _linear(weights, "self_attn.q_proj", inputs).reshape(count, shape.heads, size)
    keys = _linear(weights, "self_attn.k_proj", inputs).reshape(count, shape.kv_heads, size)
    values = _linear(weights, "self_attn.v_proj", inputs)
    softplus = np.logaddexp(0.0, _linear(weights, "self_attn.dt_proj", values))
    bias = np.exp(weights["self_attn.A"] * softplus)  # [count, heads]
    values = values.reshape(count, shape.kv_heads, size)
    outputs = np.zeros((count, shape.heads, size))
    for head in range(shape.heads):
        shared = head // (shape.heads // shape.kv_heads)
        turned = [_rotate(keys[place, shared], place) for place in range(count)]
        for place in range(count):
            seen = np.arange(place + 1)
            if count > shape.window:  # of what it may see, the greatest biases
                seen = seen[np.argsort(-bias[seen, head], kind="stable")[: shape.window]]
            query = _rotate(queries[place, head], place)
            scores = np.array([query @ turned[key] for key in seen]) / np.sqrt(size) + bias[seen, head]
            scores = np.exp(scores - scores.max())
            outputs[place, head] = (scores / scores.sum()) @ values[seen, shared]
    return _linear(weights, "self_attn.o_proj", outputs.reshape(count, shape.hidden))
