"""Compute logits only at positions with labels, or only of some tokens, in any causal language model.

Promises: within `only_labels` the output layer gets only positions with a target, those of all rows packed; with
`only_tokens` it has only the rows of some tokens, so that a large vocabulary costs no more than the tokens in use; the
model's own post-processing of logits still applies. A `TokenRestriction` gives all other tokens the lowest logit, so
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
from transformers.modeling_outputs import CausalLMOutputWithPast

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
    """The output of the language model for `inputs`, with logits of `token_ids` `[K]` only: `[..., K]`.

    Its token embeddings stay whole, even where the head shares their weights.
    """
    head = language_model.get_output_embeddings()
    name = next(name for name, module in language_model.named_modules() if module is head)
    rows = {f"{name}.{part}": weight[token_ids] for part, weight in head.named_parameters()}
    return functional_call(language_model, rows, (), inputs, tie_weights=False)


class TokenRestriction:
    """Gives all tokens but `token_ids` (ascending) the lowest logit, wherever a language model has logits of all."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self.token_ids = list(token_ids)
        self._excluded: dict[torch.device, Tensor] = {}
        self._ids: dict[torch.device, Tensor] = {}

    def __call__(self, language_model: nn.Module, _: tuple[Any, ...], output: CausalLMOutputWithPast) -> None:
        """Mask the logits, as a forward hook of the language model, which stays if its head is replaced."""
        logits = output.logits
        if logits is not None and logits.shape[-1] != len(self.token_ids):  # else they are those of `only_tokens`
            output.logits = logits.masked_fill(self._mask(logits), torch.finfo(logits.dtype).min)

    def ids(self, device: torch.device) -> Tensor:
        """`token_ids` on a device, `[K]`."""
        if device not in self._ids:
            self._ids[device] = torch.tensor(self.token_ids, device=device)
        return self._ids[device]

    def numbers(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The index of each of `labels` `[N]` among `token_ids`, and whether it is one of them."""
        token_ids = self.ids(labels.device)
        numbers = torch.searchsorted(token_ids, labels).clamp(max=len(token_ids) - 1)
        return numbers, token_ids[numbers] == labels

    def _mask(self, logits: Tensor) -> Tensor:
        if logits.device not in self._excluded:
            excluded = torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device)
            self._excluded[logits.device] = excluded.index_fill(0, self.ids(logits.device), False)
        return self._excluded[logits.device]
