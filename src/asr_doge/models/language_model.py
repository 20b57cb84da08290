"""Load the language model: any causal one of transformers, with strict checks.

Promises: every weight of the model comes from the checkpoint (otherwise an error names those that do not), unchanged or
rounded to 8 bits; Doge checkpoints of the early layout and with older names load, recognized by their tensors and not
by their name; attention is `sdpa`, since Doge's `eager` gives NaN on left padding.
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
from transformers import AutoModelForCausalLM, DogeConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.initialization import no_init_weights
from transformers.utils import logging

from asr_doge.choices import Quantization
from asr_doge.errors import CheckpointError, first_line
from asr_doge.models.checkpoints import Reference
from asr_doge.models.early_doge import EarlyDogeConfig, stored_layout
from asr_doge.models.quantization import Int8Config, quantize_linear_layers, quantized_weights
from asr_doge.models.weights import check_keys, check_shapes, listed, stored_weights

EARLY_DOGE_KEYS = {
    r"\bword_embed\b": "embed_tokens",
    r"\bpre_layernorm\b": "input_layernorm",
    r"\bpost_layernorm\b": "post_attention_layernorm",
    r"\bpre_residual\.weight\b": "input_residual",
    r"\bpost_residual\.weight\b": "post_attention_residual",
    r"\bfeed_forward\b": "mlp",
    r"\bfinal_layernorm\b": "norm",
}
"""Tensor names of SmallDoge's checkpoints from before transformers included the model, and today's names."""

ATTENTION = "sdpa"

BAR_AFTER_SECONDS = 3
"""Loading shows a progress bar if it takes longer, in seconds."""


def small_doge_config(tokenizer: PreTrainedTokenizerFast, hidden_dim: int, layers: int) -> DogeConfig:
    """The shapes of a small Doge that is trained from nothing, with the vocabulary of `tokenizer`."""
    return DogeConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_dim,
        intermediate_size=2 * hidden_dim,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_language_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A language model with random weights."""
    return AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION, trust_remote_code=False)


def load_language_model(
    reference: Reference, config: PreTrainedConfig, dtype: torch.dtype, quantization: Quantization = "none"
) -> PreTrainedModel:
    """A language model with the weights of a checkpoint.

    transformers assigns the weights, but this module reads them: transformers would keep all files mapped beside the
    weights converted to another type. With `int8` the weights are rounded one by one, so they are never all in memory
    as stored. A head tied to the token embedding is rounded too, and then no longer tied: the embedding stays as
    stored, and only its rows for tokens that occur are loaded into memory.

    Args:
        reference: the checkpoint.
        config: its configuration. The model's may differ from it: see `asr_doge.models.early_doge`.
        dtype: of the weights in memory.
        quantization: see `asr_doge.models.quantization`.

    Raises:
        CheckpointError: a weight is missing, unexpected or of another shape (the message names it), or a file is
            missing or damaged.
    """
    source = f"language model '{reference.name}'"
    config = _config_of_stored(reference, config, source)
    with init_empty_weights(), no_init_weights():
        blueprint = build_language_model(copy.deepcopy(config))
    rename, tied = _rename_for(blueprint), blueprint.all_tied_weights_keys
    if quantization == "int8":
        config = copy.deepcopy(config)
        config.tie_word_embeddings = False
        quantize_linear_layers(blueprint)
    rounded = quantized_weights(blueprint)
    try:
        with (
            _delayed_progress_bars(),
            stored_weights(reference, rename, lambda name: None if name in rounded else dtype) as stored,
        ):
            expected = blueprint.state_dict()
            check_shapes(expected, {name: stored[name] for name in stored.keys() & expected.keys()}, source)
            if quantization == "int8":
                stored |= {head: stored[origin] for head, origin in tied.items() if origin in stored}
            loaded = type(blueprint).from_pretrained(
                None,
                state_dict=stored,
                config=config,
                dtype=dtype,
                attn_implementation=ATTENTION,
                ignore_mismatched_sizes=True,  # reported below, with the names
                output_loading_info=True,
                quantization_config=Int8Config() if quantization == "int8" else None,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{source} cannot be loaded: {first_line(error)}") from error
    # `output_loading_info` makes it a pair, which its annotation does not say.
    model, report = cast(tuple[PreTrainedModel, dict[str, Any]], loaded)
    if report["mismatched_keys"]:
        names = (name for name, *_ in report["mismatched_keys"])
        raise CheckpointError(f"{source}: weights of another shape than the configuration says: {listed(names)}")
    check_keys(report["missing_keys"], report["unexpected_keys"], source)
    return model.eval()


def _config_of_stored(reference: Reference, config: PreTrainedConfig, source: str) -> PreTrainedConfig:
    """The configuration of the layout that a checkpoint's tensors have, whatever its own configuration says."""
    if not isinstance(config, DogeConfig) or isinstance(config, EarlyDogeConfig):
        return config
    with stored_weights(reference, rename_early_doge_key, lambda name: None) as stored:
        found, unlike = stored_layout(config, {name: tensor.get_shape() for name, tensor in stored.items()})
    if unlike:
        raise CheckpointError(
            f"{source} has neither layout of Doge, with q_norm and k_norm and a row of A and dt_proj for each of"
            f" {config.num_key_value_heads} key-value heads, or without and for each of {config.num_attention_heads}"
            f" heads: {listed(unlike)}"
        )
    return found


def rename_early_doge_key(key: str) -> str:
    """Today's name of a tensor of a Doge checkpoint, which may have an older one."""
    for old, new in EARLY_DOGE_KEYS.items():
        key = re.sub(old, new, key)
    return key


def _rename_for(model: PreTrainedModel) -> Callable[[str], str]:
    """A function that converts names in a checkpoint to those in `model`."""
    names = model.state_dict().keys()
    is_doge = isinstance(model.config, DogeConfig)

    def rename(key: str) -> str:
        key = rename_early_doge_key(key) if is_doge else key
        prefixed = f"{model.base_model_prefix}.{key}"  # checkpoints without the head lack the prefix
        return prefixed if key not in names and prefixed in names else key

    return rename


@contextmanager
def _delayed_progress_bars() -> Iterator[None]:
    """Delay transformers' progress bars by `BAR_AFTER_SECONDS`; settings of other libraries in the process are kept."""

    def delayed(bar: Callable[..., Any], positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
        named = {"delay": BAR_AFTER_SECONDS} | named
        return before(bar, positional, named) if before is not None else bar(*positional, **named)

    before = logging.set_tqdm_hook(delayed)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)
