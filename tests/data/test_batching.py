"""Every item once an epoch, in batches that fit, the same for the same seed and epoch."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from asr_doge.data.batching import CountBatches, LengthBatches, ProcessBatches, SharedBatches, cut_by_length
from asr_doge.data.sharding import Shard

lengths_of_items = st.lists(st.floats(0.05, 60.0), max_size=200)


@given(lengths_of_items, st.floats(0.1, 300.0), st.integers(0, 3), st.integers(0, 3))
def test_every_item_once_and_no_batch_too_large(lengths: list[float], limit: float, seed: int, epoch: int) -> None:
    batches = LengthBatches(lengths, limit, seed)
    drawn = batches.batches(epoch)
    assert sorted(index for batch in drawn for index in batch) == list(range(len(lengths)))
    assert len(drawn) == len(batches)
    for batch in drawn:
        assert batch
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= limit * (1 + 1e-9)
    assert 0 <= batches.padding_share(epoch) < 1


@given(lengths_of_items, st.floats(1.0, 300.0))
def test_the_same_epoch_is_the_same_anywhere_and_another_is_not(lengths: list[float], limit: float) -> None:
    one, two = LengthBatches(lengths, limit, seed=5), LengthBatches(lengths, limit, seed=5)
    two.set_epoch(3)
    assert list(two) == one.batches(3)
    assert {len(one.batches(epoch)) for epoch in range(4)} == {len(one)}


def test_epochs_and_seeds_differ_in_order_and_in_company() -> None:
    lengths = np.random.default_rng(0).uniform(2, 15, 500).tolist()
    batches, other = LengthBatches(lengths, 120.0, seed=0), LengthBatches(lengths, 120.0, seed=1)
    first, second = batches.batches(0), batches.batches(1)
    assert first != second
    assert other.batches(0) != first
    assert len({frozenset(batch) for batch in first} & {frozenset(batch) for batch in second}) < len(first) / 2


def test_little_padding_and_nearly_full_batches() -> None:
    lengths = np.random.default_rng(0).gamma(4.0, 1.5, 3000).tolist()
    batches = LengthBatches(lengths, 120.0)
    assert batches.padding_share() < 0.05
    assert sum(lengths) / (120.0 * len(batches)) > 0.85


@given(st.lists(st.floats(0.1, 50.0), max_size=60).map(sorted), st.floats(0.1, 100.0))
def test_runs_are_as_long_as_they_can_be(lengths: list[float], limit: float) -> None:
    ends = cut_by_length(lengths, limit)
    starts = [0, *ends[:-1]]
    assert (ends[-1] if ends else 0) == len(lengths)
    for start, end in zip(starts, ends, strict=bool(ends)):
        assert end - start == 1 or (end - start) * lengths[end - 1] <= limit
        if end < len(lengths):
            assert (end - start + 1) * lengths[end] > limit


@given(lengths_of_items.map(sorted), st.floats(0.1, 300.0), st.integers(1, 4))
def test_processes_share_every_batch_equally_and_in_order(lengths: list[float], limit: float, processes: int) -> None:
    shares = [list(SharedBatches(lengths, limit, Shard(number + 1, processes))) for number in range(processes)]
    together = []
    for batches in zip(*shares, strict=True):
        assert len({len(batch) for batch in batches}) == 1
        together += [index for batch in batches for index in batch]
        for batch in batches:
            items = [index for index in batch if index is not None]
            assert len(batch) == 1 or len(items) * max((lengths[index] for index in items), default=0) <= limit
    assert together[: len(lengths)] == list(range(len(lengths)))
    assert together[len(lengths) :] == [None] * (-len(lengths) % processes)


def of_all(batches: CountBatches | LengthBatches, processes: int, parts: int | None) -> list[list[list[int | None]]]:
    """What each process reads in each of its turns."""
    return [list(ProcessBatches(batches, Shard(number + 1, processes), parts)) for number in range(processes)]


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2))
def test_several_processes_make_the_steps_of_one_whatever_is_left_over(
    count: int, size: int, processes: int, parts: int, epoch: int
) -> None:
    """Every remainder, also where there are fewer items than places."""
    whole = CountBatches([1.0] * count, size, seed=3)
    whole.set_epoch(epoch)
    steps = -(-count // size)
    assert [len(batch) for batch in whole] == [size] * (steps - 1) + [count - size * (steps - 1)]
    assert sorted(index for batch in whole for index in batch) == list(range(count))
    read = of_all(whole, processes, parts)
    assert {len(turns) for turns in read} == {steps * parts} == {len(ProcessBatches(whole, Shard(1, processes), parts))}
    for number, batch in enumerate(whole):
        turns = [turn for process in read for turn in process[number * parts : (number + 1) * parts]]
        assert all(turns)  # nobody is left without a row, which would stop the others
        assert [index for turn in turns for index in turn if index is not None] == batch


@given(st.lists(st.floats(0.5, 30), min_size=1, max_size=60), st.integers(1, 4))
def test_batches_of_seconds_are_dealt_out_and_none_twice(lengths: list[float], processes: int) -> None:
    whole = LengthBatches(lengths, 60.0)
    read = of_all(whole, processes, None)
    assert {len(turns) for turns in read} == {-(-len(whole) // processes)}
    dealt = [turn for turns in zip(*read, strict=True) for turn in turns if turn != [None]]
    assert dealt == list(whole)


def test_the_order_changes_by_epoch_and_seed() -> None:
    batches = CountBatches([1.0] * 50, 5, seed=0)
    assert batches.batches(0) != batches.batches(1)
    assert batches.batches(0) != CountBatches([1.0] * 50, 5, seed=1).batches(0)
    assert batches.batches(7) == CountBatches([1.0] * 50, 5, seed=0).batches(7)
