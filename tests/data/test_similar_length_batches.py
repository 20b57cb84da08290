"""Batches of similar length by count: everything once, and far less padding than at random."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from asr_doge.data.batching import SimilarLengthBatches

LENGTHS = st.lists(st.floats(0.5, 30), min_size=1, max_size=70)


@given(lengths=LENGTHS, size=st.integers(1, 9), seed=st.integers(0, 3), epoch=st.integers(0, 5))
def test_everything_comes_once_in_full_batches(lengths: list[float], size: int, seed: int, epoch: int) -> None:
    batches = SimilarLengthBatches(lengths, size, seed).batches(epoch)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert {len(batch) for batch in batches[:-1]} <= {size}
    assert len(batches[-1]) == (len(lengths) % size or size)
    again = SimilarLengthBatches(lengths, size, seed)
    again.set_epoch(epoch)
    assert [*again] == batches
    assert len(again) == len(batches)


def test_epochs_differ_and_little_is_padding() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(1.2, 0.6, 800)
    batches = SimilarLengthBatches(lengths.tolist(), 16)
    assert {frozenset(batch) for batch in batches.batches(0)}.isdisjoint(map(frozenset, batches.batches(1)))
    order = rng.permutation(800).reshape(-1, 16)
    at_random = 1 - lengths.sum() / sum(16 * lengths[batch].max() for batch in order)
    assert batches.padding_share() < at_random / 4
    lasts = {len(SimilarLengthBatches(lengths[:790].tolist(), 16).batches(epoch)[-1]) for epoch in range(3)}
    assert lasts == {790 % 16}
