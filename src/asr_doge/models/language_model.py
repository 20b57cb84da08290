"""The language model: any causal one of transformers, loaded strictly.

Promises: every weight of the model comes from the checkpoint (or an error names those that do not); Doge checkpoints
published under older key names load as they are; attention is `sdpa`, since Doge's `eager` gives NaN on left padding.
It does not know about speech.
"""

import copy
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from asr_doge.errors import CheckpointError
from asr_doge.models.checkpoints import (
    Reference,
    RenameKey,
    check_keys,
    first_line,
    listed,
    load_weights,
    read_weights,
    stored_weights,
)
from asr_doge.models.quantization import quantize_linear_layers

LEGACY_DOGE_KEYS = {
    r"\bword_embed\b": "embed_tokens",
    r"\bpre_layernorm\b": "input_layernorm",
    r"\bpost_layernorm\b": "post_attention_layernorm",
    r"\bpre_residual\.weight\b": "input_residual",
    r"\bpost_residual\.weight\b": "post_attention_residual",
    r"\bfeed_forward\b": "mlp",
    r"\bfinal_layernorm\b": "norm",
}
"""Names that SmallDoge's checkpoints used before transformers took the model in, and today's."""

ATTENTION = "sdpa"

BAR_AFTER_SECONDS = 3
"""Loading that takes longer shows how far it is."""


def build_language_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A language model with random weights."""
    return AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION, trust_remote_code=False)


def load_quantized_language_model(
    reference: Reference, config: PreTrainedConfig, dtype: torch.dtype
) -> PreTrainedModel:
    """A language model with the weights of a checkpoint in 8 bits, which are never all in memory as they are stored.

    A head that is the token embedding is rounded too, and no longer tied to it: of the embedding, which stays as it is
    stored, only the rows of tokens that are read then come into memory.

    Raises:
        CheckpointError: a weight is missing or unexpected (the message names it), or a file is.
    """
    with init_empty_weights(include_buffers=False):
        model = build_language_model(copy.deepcopy(config))
    tied: dict[str, str] = model.all_tied_weights_keys
    model.config.tie_word_embeddings, model.all_tied_weights_keys = False, {}
    quantize_linear_layers(model)
    rename = _rename_for(model)
    load_weights(model, reference, rename, f"language model '{reference.name}'", dtype, optional=tied)
    for name, origin in tied.items():
        (weight,) = read_weights(reference, _only(origin, rename)).values()
        model.load_state_dict({name: weight.to(dtype)}, strict=False, assign=True)
    return model.eval()


def _rename_for(model: PreTrainedModel) -> Callable[[str], str]:
    """What renames the weights of a checkpoint to those of `model`, as transformers would."""
    names = model.state_dict().keys()
    patterns = LEGACY_DOGE_KEYS if model.config.model_type == "doge" else {}

    def rename(key: str) -> str:
        for old, new in patterns.items():
            key = re.sub(old, new, key)
        prefixed = f"{model.base_model_prefix}.{key}"  # checkpoints of the model without its head lack the prefix
        return prefixed if key not in names and prefixed in names else key

    return rename


def _only(name: str, rename: RenameKey) -> RenameKey:
    """Wants the one tensor that `rename` calls so."""
    return lambda key: key if rename(key) == name else None


def load_language_model(reference: Reference, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A language model with the weights of a checkpoint.

    It is transformers that puts them in place, but we that read them: it would keep all of the files mapped beside what
    they become in another type.

    Raises:
        CheckpointError: a weight is missing or unexpected (the message names it), or a file is.
    """
    with init_empty_weights():
        kind = type(build_language_model(config))
    try:
        with _late_bars(), stored_weights(reference, rename_language_model_key, lambda name: dtype) as stored:
            loaded = kind.from_pretrained(
                None,
                state_dict=stored,
                config=config,
                dtype=dtype,
                attn_implementation=ATTENTION,
                key_mapping=LEGACY_DOGE_KEYS if config.model_type == "doge" else None,
                ignore_mismatched_sizes=True,  # reported instead, below, with their names
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"language model '{reference.name}' cannot be loaded: {first_line(error)}") from error
    # `output_loading_info` makes it a pair, which its annotation does not say.
    model, report = cast(tuple[PreTrainedModel, dict[str, Any]], loaded)
    source = f"language model '{reference.name}'"
    if report["mismatched_keys"]:
        names = (name for name, *_ in report["mismatched_keys"])
        raise CheckpointError(f"{source}: weights of another shape than the configuration says: {listed(names)}")
    check_keys(report["missing_keys"], report["unexpected_keys"], source)
    return model


@contextmanager
def _late_bars() -> Iterator[None]:
    """Transformers' progress bars wait for `BAR_AFTER_SECONDS`; what else the process loads keeps its settings."""

    def delayed(bar: Callable[..., Any], positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
        named = {"delay": BAR_AFTER_SECONDS} | named
        return before(bar, positional, named) if before is not None else bar(*positional, **named)

    before = logging.set_tqdm_hook(delayed)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)


def rename_language_model_key(key: str) -> str:
    """Every tensor of a language model is wanted, under its own name (for `weights_fingerprint`)."""
    return key
