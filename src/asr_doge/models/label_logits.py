"""Logits of labels and no others, from any causal language model.

Promises: within `only_labels` the head sees the positions that have a target, all rows' one after another; what the
model does to its logits after that is done to them. It does not compute a loss.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

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
