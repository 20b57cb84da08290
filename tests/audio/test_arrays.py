"""Samples that somebody hands in become one mono waveform, or one clear line."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from asr_doge.audio.arrays import merge_short_blocks, prepare_waveform
from asr_doge.errors import AudioError
from tests.audio.tones import tone


@given(
    channels=st.integers(1, 8),
    samples=st.integers(9, 2000),
    from_rate=st.sampled_from([8000, 16000, 44100]),
    channels_first=st.booleans(),
    dtype=st.sampled_from(["uint8", "int16", "int32", "float16", "float32", "float64"]),
)
def test_an_array_of_any_shape_and_type_becomes_mono(
    channels: int, samples: int, from_rate: int, channels_first: bool, dtype: str
) -> None:
    """Half of full scale in every channel is half of full scale, whatever holds it."""
    half = {"uint8": 192, "int16": 2**14, "int32": 2**30}.get(dtype, 0.5)
    array = np.full((channels, samples) if channels_first else (samples, channels), half, dtype=dtype)
    before = array.copy()
    waveform = prepare_waveform(array, from_rate)
    assert waveform.dtype == np.float32
    assert waveform.shape == (-(-samples * 16000 // from_rate),)
    np.testing.assert_array_equal(array, before)
    if from_rate == 16000:
        np.testing.assert_array_equal(waveform, np.float32(0.5))


def test_lists_and_tensors_are_as_good_as_arrays() -> None:
    samples = tone(16000, 0.1)
    for same in (samples.tolist(), torch.from_numpy(samples), torch.from_numpy(samples)[None].requires_grad_()):
        np.testing.assert_array_equal(prepare_waveform(same, 16000), samples)
    coarse = prepare_waveform(torch.from_numpy(samples).bfloat16(), 16000)
    np.testing.assert_allclose(coarse, samples, atol=0.01)
    integers = torch.full((100,), -(2**14), dtype=torch.int16)
    np.testing.assert_array_equal(prepare_waveform(integers, 16000), np.float32(-0.5))


def test_a_view_that_skips_samples_is_read_right() -> None:
    interleaved = np.stack([tone(16000), np.zeros_like(tone(16000))], axis=1).ravel()
    np.testing.assert_array_equal(prepare_waveform(interleaved[::2], 16000), tone(16000))


@pytest.mark.parametrize(
    ("array", "rate", "finding"),
    [
        ([], 16000, "holds no samples"),
        (np.zeros((2, 0)), 16000, "holds no samples"),
        (0.5, 16000, "has 0 axes"),
        (np.zeros((1, 1, 100)), 16000, "has 3 axes"),
        ([[0.1, 0.2], [0.1]], 16000, "different lengths"),
        ([0.1, float("nan")], 16000, "NaN or infinite"),
        ([0.1, float("inf")], 16000, "NaN or infinite"),
        (np.array([[np.inf], [-np.inf]]), 16000, "NaN or infinite"),
        (np.array([1e300]), 16000, "NaN or infinite"),
        ([0, 1000, -1000], 16000, "type int64"),
        (np.zeros(10, dtype=bool), 16000, "type bool"),
        (np.zeros(10, dtype=np.complex64), 16000, "type complex64"),
        (["a.wav"], 16000, "type <U5"),
        (np.array([0.0, 20_000.0]), 16000, "up to 20000: scale them"),
        ([0.1], 0, "sampling rate of 0 Hz"),
    ],
)
def test_a_bad_array_is_named_with_its_fault(array: Any, rate: int, finding: str) -> None:
    with pytest.raises(AudioError, match=f"^microphone .*{finding}"):
        prepare_waveform(array, rate, name="microphone")


@given(sizes=st.lists(st.integers(0, 9), max_size=12), samples=st.integers(1, 10), breaks=st.booleans())
def test_merged_blocks_hold_the_same_samples_also_before_an_error(sizes: list[int], samples: int, breaks: bool) -> None:
    stream = np.arange(sum(sizes), dtype=np.float32)

    def blocks() -> Iterator[NDArray[np.float32]]:
        yield from np.split(stream, np.cumsum(sizes))[: len(sizes)]
        if breaks:
            raise AudioError("damaged")

    found: list[NDArray[np.float32]] = []
    with pytest.raises(AudioError) if breaks else nullcontext():
        for block in merge_short_blocks(blocks(), samples):
            found.append(block)
            # No more was read than is needed.
            assert len(block) < samples + max(sizes)
    assert np.concatenate([np.zeros(0, np.float32), *found]).tolist() == stream.tolist()
    assert all(len(block) >= samples for block in found[:-1])


def test_a_block_that_is_long_enough_is_not_copied() -> None:
    long = np.zeros(100, dtype=np.float32)
    assert next(merge_short_blocks([long], 10)) is long
