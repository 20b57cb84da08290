"""Batches of a fixed number of items of like length, so that little of them is padding.

Promises: every item comes once an epoch; every batch but the last of an epoch has the same size; which items share a
batch, and the order of the batches, changes by epoch and depends on the lengths, the seed and the epoch alone.
It knows lengths of any unit. For batches bounded by their total length see `asr_doge.data.batching`.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

JITTER = 0.1
"""Lengths are taken for up to e^±this of what they are before they are sorted, so that batches are made up anew."""


class LikeBatches(Sampler[list[int]]):
    """A batch sampler for a data loader.

    Args:
        lengths: of each item.
        size: items of a batch.
        seed: of the order.
    """

    def __init__(self, lengths: Sequence[float], size: int, seed: int = 0) -> None:
        self.lengths: NDArray[np.float64] = np.asarray(lengths, dtype=np.float64)
        self.size = size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose batches come next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.size)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches(self.epoch))

    def batches(self, epoch: int) -> list[list[int]]:
        """Whole batches of an epoch; the one that is not full, if any, is the last."""
        rng = np.random.default_rng([self.seed, epoch])
        order = np.argsort(self.lengths * np.exp(rng.uniform(-JITTER, JITTER, len(self.lengths))), kind="stable")
        full, rest = divmod(len(order), self.size)
        # Of any length, not always the longest.
        place = int(rng.integers(full + 1)) * self.size
        small, order = order[place : place + rest], np.delete(order, slice(place, place + rest))
        batches = [order[number * self.size :][: self.size].tolist() for number in rng.permutation(full)]
        return [*batches, small.tolist()] if rest else batches

    def padding_share(self, epoch: int = 0) -> float:
        """Padding as a fraction of all that an epoch's batches hold."""
        room = sum(len(batch) * self.lengths[batch].max() for batch in self.batches(epoch))
        return max(0.0, 1 - float(self.lengths.sum() / room)) if room else 0.0
