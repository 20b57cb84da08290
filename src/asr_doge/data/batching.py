"""Divide items into batches by count or by similar length, and give each process its part.

Promises: with a limit on lengths, no batch exceeds it, padding included (a single longer item is a batch by itself);
every item occurs once per epoch; the composition and order of the batches change by epoch and depend only on the
lengths, the seed and the epoch, so the same number of other processes can continue in the middle of an epoch. Every
epoch has the same number of batches, which learning-rate schedules require. Several processes make the same steps as
one: what they read for a step, joined, is what one would read, and none reads an item twice to keep busy.
It knows lengths of any unit (seconds, tokens), and neither audio nor text.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from asr_doge.data.sharding import WHOLE, Shard

_JITTER, SIMILAR_LENGTH_JITTER = 0.02, 0.1
"""Before sorting, lengths are multiplied by up to e^±this, so that the composition of batches changes by epoch; of
batches limited by length less, since what it makes them longer by is kept free."""


def cut_by_length(lengths: Sequence[float], limit: float) -> list[int]:
    """Cut ascending `lengths` into runs of which none exceeds `limit` once padded.

    Returns:
        Where each run ends; a run lies between two ends and has at least one item.
    """
    ends = []
    start = 0
    for index, length in enumerate(lengths):
        if index > start and length * (index - start + 1) > limit:
            ends.append(index)
            start = index
    return [*ends, len(lengths)] if lengths else []


class EpochBatches(Sampler[list[int]], ABC):
    """A batch sampler for a data loader: lists of indices of items, composed anew for each epoch from the seed."""

    def __init__(self, lengths: Sequence[float], seed: int = 0) -> None:
        self.lengths: NDArray[np.float64] = np.asarray(lengths, dtype=np.float64)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose batches come next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches(self.epoch))

    @abstractmethod
    def __len__(self) -> int:
        """Batches of an epoch, the same number in each."""

    @abstractmethod
    def batches(self, epoch: int) -> list[list[int]]:
        """Batches of an epoch."""

    def padding_share(self, epoch: int = 0) -> float:
        """Padding as a fraction of the total size of an epoch's batches."""
        room = sum(len(batch) * self.lengths[batch].max() for batch in self.batches(epoch))
        return max(0.0, 1 - float(self.lengths.sum() / room)) if room else 0.0  # rounding may give less than 0

    def _jittered_order(self, rng: np.random.Generator, jitter: float) -> NDArray[np.int64]:
        """Indices by length, each length multiplied by up to e^±jitter."""
        return np.argsort(self.lengths * np.exp(rng.uniform(-jitter, jitter, len(self.lengths))), kind="stable")


class LengthBatches(EpochBatches):
    """Batches of items of similar length, of which the number times the longest is at most `limit`."""

    def __init__(self, lengths: Sequence[float], limit: float, seed: int = 0) -> None:
        super().__init__(lengths, seed)
        # After jitter, the item in place k is at most e^(2 jitter) times as long as the k-th shortest is.
        self._ends = cut_by_length(sorted(self.lengths * math.exp(2 * _JITTER)), limit)

    def __len__(self) -> int:
        return len(self._ends)

    def batches(self, epoch: int) -> list[list[int]]:
        """See `EpochBatches.batches`."""
        rng = np.random.default_rng([self.seed, epoch])
        order = self._jittered_order(rng, _JITTER)
        batches = [part.tolist() for part in np.split(order, self._ends[:-1])] if self._ends else []
        return [batches[index] for index in rng.permutation(len(batches))]


class CountBatches(EpochBatches):
    """Batches of `size` items in random order; the last of an epoch has the rest."""

    def __init__(self, lengths: Sequence[float], size: int, seed: int = 0) -> None:
        super().__init__(lengths, seed)
        self.size = size

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.size)

    def batches(self, epoch: int) -> list[list[int]]:
        """See `EpochBatches.batches`."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.lengths)).tolist()
        return [order[start : start + self.size] for start in range(0, len(order), self.size)]


class SimilarLengthBatches(CountBatches):
    """Batches of `size` items of similar length; the one of an epoch that is not full is its last."""

    def batches(self, epoch: int) -> list[list[int]]:
        """See `EpochBatches.batches`."""
        rng = np.random.default_rng([self.seed, epoch])
        order = self._jittered_order(rng, SIMILAR_LENGTH_JITTER)
        full, rest = divmod(len(order), self.size)
        # The smaller batch is of random length, not always of the longest items.
        place = int(rng.integers(full + 1)) * self.size
        small, order = order[place : place + rest], np.delete(order, slice(place, place + rest))
        batches = [order[number * self.size :][: self.size].tolist() for number in rng.permutation(full)]
        return [*batches, small.tolist()] if rest else batches


class ProcessBatches(Sampler[list[int | None]]):
    """One process's part of the batches that all processes read together.

    If nothing is left for it in a batch, it gets an empty place, None, so that every process makes every step.

    Args:
        whole: the batches of all processes.
        shard: the process.
        parts: number of parts that it splits its share of a batch into; None deals out whole batches in turn.
    """

    def __init__(self, whole: EpochBatches, shard: Shard = WHOLE, parts: int | None = None) -> None:
        self.whole = whole
        self.shard = shard
        self.parts = parts

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose batches come next."""
        self.whole.set_epoch(epoch)

    def __len__(self) -> int:
        return math.ceil(len(self.whole) / self.shard.count) if self.parts is None else len(self.whole) * self.parts

    def __iter__(self) -> Iterator[list[int | None]]:
        mine = self.shard.index - 1
        if self.parts is None:
            batches = list(self.whole)
            for start in range(mine, len(self) * self.shard.count, self.shard.count):
                yield [*batches[start]] if start < len(batches) else [None]
            return
        for batch in self.whole:
            size = math.ceil(len(batch) / (self.shard.count * self.parts))
            for place in range(mine * self.parts, (mine + 1) * self.parts):
                yield [*batch[place * size : (place + 1) * size]] or [None]


class SharedBatches(Sampler[list[int | None]]):
    """One process's part of batches of items sorted by length, for a single pass over all of them.

    The n-th batches of all processes have equally many places and, joined, hold the items in their order; unused places
    at the end are None.

    Args:
        lengths: of each item, ascending.
        limit: of each process's batch, as in `LengthBatches`.
        shard: the process.
    """

    def __init__(self, lengths: Sequence[float], limit: float, shard: Shard = WHOLE) -> None:
        count = shard.count
        places = [*range(len(lengths)), *[None] * (-len(lengths) % count)]
        # One place in each process's batch at a time, so that all get equally many.
        longest = [max(lengths[start : start + count]) for start in range(0, len(lengths), count)]
        self._batches: list[list[int | None]] = []
        start = 0
        for end in cut_by_length(longest, limit):
            first = start * count + (shard.index - 1) * (end - start)
            self._batches.append(places[first : first + end - start])
            start = end

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int | None]]:
        return iter(self._batches)
