"""Batches of a fixed number of items of similar length, so that there is little padding.

Promises: every item occurs once per epoch; every batch but the last of an epoch has the same size; the composition and
order of the batches change by epoch and depend only on the lengths, the seed and the epoch.
It knows lengths of any unit. For batches limited by their total length see `asr_doge.data.batching`.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

JITTER = 0.1
"""Before sorting, lengths are multiplied by up to e^±this, so that the composition of batches changes by epoch."""


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
        """Batches of an epoch; if one is not full, it is the last."""
        rng = np.random.default_rng([self.seed, epoch])
        order = np.argsort(self.lengths * np.exp(rng.uniform(-JITTER, JITTER, len(self.lengths))), kind="stable")
        full, rest = divmod(len(order), self.size)
        # The smaller batch is of random length, not always of the longest items.
        place = int(rng.integers(full + 1)) * self.size
        small, order = order[place : place + rest], np.delete(order, slice(place, place + rest))
        batches = [order[number * self.size :][: self.size].tolist() for number in rng.permutation(full)]
        return [*batches, small.tolist()] if rest else batches

    def padding_share(self, epoch: int = 0) -> float:
        """Padding as a fraction of the total size of an epoch's batches."""
        room = sum(len(batch) * self.lengths[batch].max() for batch in self.batches(epoch))
        return max(0.0, 1 - float(self.lengths.sum() / room)) if room else 0.0
