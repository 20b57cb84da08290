"""Logits of labels and no others, and of some tokens and no others, from any causal language model.

Promises: within `only_labels` the head sees the positions that have a target, all rows' one after another; with
`only_tokens` it has a row for each of some tokens, so that a large vocabulary costs what the texts use of it; what the
model does to its logits after that is done to them. `never_write_others` gives all other tokens the lowest logit, so
that a model trained on some tokens is decoded, and its loss computed, with the same ones.
It does not compute a loss.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from asr_doge.models.layout import IGNORED_LABEL


@contextmanager
def only_labels(head: nn.Module, targets: Tensor) -> Iterator[None]:
    """Let `head`, which would see hidden states `[B, K + 1, H]`, see `[1, labels, H]`.

    Args:
        head: the output layer.
        targets: `[B, K]`, of the K positions before the last, -100 for none.
    """
    has_target = F.pad(targets != IGNORED_LABEL, (0, 1))

    def pack(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][has_target][None], *inputs[1:])

    hook = head.register_forward_pre_hook(pack)
    try:
        yield
    finally:
        hook.remove()


def only_tokens(language_model: PreTrainedModel, token_ids: Tensor, **inputs: Any) -> Any:
    """What the language model gives for `inputs`, with the logits of `token_ids` `[K]` only: `[..., K]`.

    Its token embeddings stay whole, even where the head shares their weights.
    """
    head = language_model.get_output_embeddings()
    name = next(name for name, module in language_model.named_modules() if module is head)
    rows = {f"{name}.{part}": weight[token_ids] for part, weight in head.named_parameters()}
    return functional_call(language_model, rows, (), inputs, tie_weights=False)


def never_write_others(head: nn.Module, token_ids: Sequence[int]) -> None:
    """Give every token but these the lowest logit there is, whenever `head` computes logits of all `[..., V]`."""

    def lower(module: nn.Module, _: tuple[Tensor, ...], logits: Tensor) -> Tensor:
        if logits.shape[-1] == len(token_ids):  # within `only_tokens`
            return logits
        kept = torch.tensor(token_ids, device=logits.device)
        lowest = torch.full_like(logits, torch.finfo(logits.dtype).min)
        return lowest.index_copy(-1, kept, logits.index_select(-1, kept))

    head.register_forward_hook(lower)
