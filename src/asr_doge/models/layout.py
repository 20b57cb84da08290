"""The layout of a batch before the language model, and its decoding state.

Promises: every row is padding, then `[bos] prompt | speech | text [eos]`, so the newest tokens of all rows are in the
last columns; columns that are not part of a row are masked for it, so its numbers do not depend on the other rows.
It knows tensors and caches, and no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, DynamicCache

IGNORED_LABEL = -100
MAX_LENGTH_DIFFERENCE = 24
"""On the CPU, an additional pass costs about as much as this many additional positions: it reads the weights again."""


@dataclass
class Layout:
    """A batch as the language model reads it: each row is padding, then `[bos] prompt | speech | text [eos]`.

    Attributes:
        embeddings: `[B, N, H]`.
        mask: `[B, N]`, 1 at real positions.
        position_ids: `[B, N]`, counted from each row's first real position.
        labels: `[B, N]`, token ids at text positions, else -100; None without text.
    """

    embeddings: Tensor
    mask: Tensor
    position_ids: Tensor
    labels: Tensor | None


def left_pad(embeddings: Tensor, mask: Tensor, labels: Tensor | None, width: int | None = None) -> Layout:
    """Move the padding between and after a row's parts to its left end.

    Padding is on the left in training as in generation: the last position of every row is then its newest token, and
    the text of all rows is in the last columns, the only ones that need logits.

    Args:
        embeddings: `[B, N, H]`, the concatenated parts, each with its own padding.
        mask: `[B, N]`, True at real positions.
        labels: `[B, L]`, labels of the last L positions.
        width: the most real positions of a row, where it is known; else the host waits for the device to count them.
    """
    positions = mask.shape[1]
    width = int(mask.sum(dim=1).max()) if width is None else width
    order = mask.long().argsort(dim=1, stable=True)[:, -width:]
    mask = mask.gather(1, order)
    embeddings = embeddings.gather(1, order[..., None].expand(-1, -1, embeddings.shape[2]))
    if labels is not None:
        labels = F.pad(labels, (positions - labels.shape[1], 0), value=IGNORED_LABEL).gather(1, order)
    position_ids = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
    return Layout(embeddings.masked_fill(~mask[..., None], 0.0), mask.long(), position_ids, labels)


def group_by_length(lengths: Tensor) -> list[Tensor]:
    """Group the rows of `lengths` `[B]` by similar length; returns the indices of each group."""
    order = lengths.argsort(descending=True)
    groups: list[list[int]] = []
    for row in order.tolist():
        if not groups or lengths[groups[-1][0]] - lengths[row] > MAX_LENGTH_DIFFERENCE:
            groups.append([])
        groups[-1].append(row)
    return [torch.tensor(sorted(group)) for group in groups]


def full_attention_mask(inputs: Tensor, length: int) -> Tensor:
    """The attention mask of inputs without padding, `[B, length]`."""
    return torch.ones(len(inputs), length, dtype=torch.long, device=inputs.device)


@dataclass
class DecodingState:
    """The KV cache of a batch and its attention mask; rows share the cache although they accept unequal lengths.

    A column that one row rejected is masked for that row; columns that every row rejected are cut off.

    Attributes:
        cache: keys and values of N columns.
        mask: `[B, N]`, 1 at the tokens that a row keeps.
    """

    cache: Cache
    mask: Tensor

    @classmethod
    def joined(cls, caches: Sequence[Cache], groups: Sequence[Tensor], mask: Tensor) -> "DecodingState":
        """The state of the rows of `mask`, joined from the caches of groups of rows, `[b]` indices each."""
        joined = DynamicCache()
        for number in range(len(caches[0])):
            whole = []
            for part in ("keys", "values"):
                first: Tensor = getattr(caches[0].layers[number], part)
                rows = first.new_zeros(len(mask), first.shape[1], mask.shape[1], first.shape[3])
                for cache, group in zip(caches, groups, strict=True):
                    own: Tensor = getattr(cache.layers[number], part)
                    rows[group, :, mask.shape[1] - own.shape[2] :] = own
                whole.append(rows)
            keys, values = whole
            joined.update(keys, values, number)
        return cls(joined, mask)

    def reject(self, counts: Sequence[int]) -> None:
        """Remove each row's last columns; `counts` says how many."""
        columns = self.mask.shape[1]
        ends = torch.tensor([columns - count for count in counts]).to(self.mask.device, non_blocking=True)
        kept = torch.arange(columns, device=self.mask.device)[None, :] < ends[:, None]
        shared = min(counts)
        self.mask = (self.mask * kept)[:, : columns - shared]
        if shared:
            self.cache.crop(-shared)

    def select(self, rows: Tensor) -> None:
        """Keep some rows only; `rows` are their indices."""
        self.cache.batch_select_indices(rows)
        self.mask = self.mask[rows]
