"""Resampling keeps what the new rate can hold, and nothing else."""

import math
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import firwin, resample_poly

from asr_doge.audio.resampling import _low_pass, resample, resample_blocks


def tone(frequency: float, rate: int, seconds: float = 1.0) -> np.ndarray:
    return np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate).astype(np.float32)


@settings(deadline=None)  # the first call imports scipy
@given(st.integers(0, 3000), st.sampled_from([8000, 11025, 16000, 22050, 44100, 48000]), st.sampled_from([8000, 16000]))
def test_the_length_follows_the_rate(samples: int, from_rate: int, to_rate: int) -> None:
    resampled = resample(np.ones(samples, dtype=np.float32), from_rate, to_rate)
    assert resampled.dtype == np.float32
    assert resampled.size == math.ceil(samples * to_rate / from_rate)
    assert np.isfinite(resampled).all()


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_a_tone_keeps_its_pitch_level_and_timing(rate: int) -> None:
    resampled = resample(tone(440, rate), rate, 16000)
    inside = slice(800, -800)  # the filter has nothing to look at beyond the ends
    np.testing.assert_allclose(resampled[inside], tone(440, 16000)[inside], atol=0.02)


def test_what_the_new_rate_cannot_hold_is_removed_not_folded_back() -> None:
    assert np.abs(resample(tone(10_000, 44100), 44100, 16000)[800:-800]).max() < 0.01


def test_equal_rates_cost_nothing() -> None:
    waveform = tone(440, 16000)
    assert resample(waveform, 16000, 16000) is waveform


@pytest.mark.parametrize("rates", [(0, 16000), (16000, 0), (-8000, 16000)])
def test_an_impossible_rate_is_refused(rates: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="positive"):
        resample(tone(440, 16000), *rates)


@settings(max_examples=30)
@given(
    st.sampled_from([(8000, 16000), (44100, 16000), (48000, 16000), (11025, 16000), (16000, 16000), (22051, 16000)]),
    st.lists(st.integers(1, 60_000), min_size=1, max_size=6),
)
def test_in_blocks_it_is_the_same(rates: tuple[int, int], sizes: list[int]) -> None:
    waveform = np.random.default_rng(0).normal(0, 0.1, sum(sizes)).astype(np.float32)
    blocks = np.split(waveform, np.cumsum(sizes)[:-1])
    joined = np.concatenate(list(resample_blocks(blocks, *rates)))
    np.testing.assert_allclose(joined, resample(waveform, *rates), atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 44100, 44247, 11127])
def test_it_is_the_filter_of_scipy_designed_once(rate: int) -> None:
    """If it were designed for every block, that would take most of the time of reading a recording at an odd rate."""
    waveform = np.random.default_rng(0).normal(0, 0.1, rate).astype(np.float32)
    divisor = math.gcd(rate, 16000)
    with patch("scipy.signal.firwin", wraps=firwin) as designed:
        _low_pass.cache_clear()
        blocks = list(resample_blocks(np.split(waveform, 4) * 8 if rate % 4 == 0 else [waveform] * 3, rate, 16000))
    assert designed.call_count == 1
    assert len(blocks) > 1
    np.testing.assert_array_equal(
        resample(waveform, rate, 16000), resample_poly(waveform, 16000 // divisor, rate // divisor)
    )
