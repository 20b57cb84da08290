"""Pieces join up to the whole, none is too long, and cuts fall into pauses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr_doge.inference.segmentation import split_at_pauses

RATE = 1000


def noise(seconds: float, seed: int = 0) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)


@given(
    st.integers(min_value=1, max_value=20_000),
    st.floats(min_value=0.3, max_value=8.0),
    st.integers(min_value=0, max_value=9),
    st.booleans(),
)
def test_pieces_join_up_and_none_is_too_long(samples: int, max_seconds: float, seed: int, silent: bool) -> None:
    waveform = np.zeros(samples, dtype=np.float32) if silent else noise(samples / RATE, seed)
    pieces = split_at_pauses(waveform, RATE, max_seconds)
    np.testing.assert_array_equal(np.concatenate(pieces), waveform)
    assert all(0 < len(piece) <= max_seconds * RATE for piece in pieces)
    assert len(pieces) <= 1 + samples // (0.45 * max_seconds * RATE)


@given(st.floats(min_value=20.5, max_value=29.5), st.integers(min_value=0, max_value=9))
def test_the_cut_falls_into_the_pause(at: float, seed: int) -> None:
    waveform = noise(40.0, seed)
    pause = slice(round((at - 0.15) * RATE), round((at + 0.15) * RATE))
    waveform[pause] *= 0.01
    first, second = split_at_pauses(waveform, RATE)
    assert pause.start <= len(first) <= pause.stop
    assert len(first) + len(second) == len(waveform)


@pytest.mark.parametrize("seconds", [0.001, 29.999, 30.0])
def test_what_fits_is_not_cut(seconds: float) -> None:
    (piece,) = split_at_pauses(noise(seconds), RATE)
    assert len(piece) == round(seconds * RATE)


def test_a_sample_too_many_is_cut() -> None:
    assert len(split_at_pauses(noise(30.001), RATE)) == 2


def test_a_pause_out_of_reach_is_no_reason_to_cut_early() -> None:
    waveform = noise(40.0)
    waveform[5_000:5_500] = 0.0
    assert all(len(piece) > 15 * RATE for piece in split_at_pauses(waveform, RATE)[:-1])


def test_an_hour_is_cut_all_along() -> None:
    pieces = split_at_pauses(noise(3600.0), RATE)
    assert 120 <= len(pieces) <= 180
