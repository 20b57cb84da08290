"""The log-mel front end against its recipe, written again from scratch in double precision."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from asr_doge.audio.log_mel import MINIMUM_SAMPLES, delta_log_mel_features, log_mel_features


def mel_power(waveform: NDArray[np.float64]) -> NDArray[np.float64]:
    """FFT 512, Hann 400, hop 160, 80 HTK mels: by definition only."""
    padded = np.pad(waveform, 256, mode="reflect")
    window = np.zeros(512)
    window[56:456] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    bins = np.arange(257)
    dft = np.exp(-2j * np.pi * np.outer(bins, np.arange(512)) / 512)
    frames = np.stack([padded[start : start + 512] for start in range(0, waveform.size + 1, 160)])
    power = np.abs((frames * window) @ dft.T) ** 2

    corners_mel = np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 82)
    corners = 700 * (10 ** (corners_mel / 2595) - 1)
    hertz = bins * 16_000 / 512
    mel = np.empty((len(frames), 80))
    for band in range(80):
        low, middle, high = corners[band : band + 3]
        triangle = np.minimum((hertz - low) / (middle - low), (high - hertz) / (high - middle))
        mel[:, band] = power @ np.maximum(triangle, 0)
    return mel


def scaled(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log10, floor, scale."""
    log = np.log10(np.maximum(mel, 1e-10))
    return np.maximum(log, log.max() - 8) / 4 + 1


def reference(waveform: NDArray[np.float64]) -> NDArray[np.float64]:
    """Two frames in one."""
    log = scaled(mel_power(waveform))
    return log[: len(log) // 2 * 2].reshape(-1, 160)


def delta_reference(waveform: NDArray[np.float64]) -> NDArray[np.float64]:
    """Granite Speech 5's, as its extractor and torchaudio's `compute_deltas` (window 3, edges repeated) define it."""
    hops = waveform.size // 160
    frames = 2 * -(-hops // 2)
    padded = np.concatenate([waveform, np.zeros(max(0, (frames - 1) * 160 + 1 - waveform.size))])
    log = scaled(mel_power(padded)[:frames])
    deltas = np.stack([(log[min(t + 1, frames - 1)] - log[max(t - 1, 0)]) / 2 for t in range(frames)])
    return np.concatenate([log, deltas], axis=1).reshape(-1, 320)


def noise(samples: int, seed: int = 0) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal(samples) * 10 ** rng.uniform(-3, 0) * (1 + np.sin(np.arange(samples) / 700))


@settings(max_examples=25)
@example(samples=MINIMUM_SAMPLES, seed=0)
@example(samples=319, seed=0)
@example(samples=320, seed=0)
@example(samples=479, seed=0)
@example(samples=480, seed=0)
@given(samples=st.integers(MINIMUM_SAMPLES, 9000), seed=st.integers(0, 99))
def test_features_are_those_of_the_recipe(samples: int, seed: int) -> None:
    waveform = noise(samples, seed)
    wanted = reference(waveform)
    features = log_mel_features(torch.from_numpy(waveform))
    # Centred windows, 100 a second, stacked in pairs.
    assert features.shape == wanted.shape == ((samples // 160 + 1) // 2, 160)
    np.testing.assert_allclose(features.numpy(), wanted, rtol=0, atol=1e-9)
    single = log_mel_features(torch.from_numpy(waveform.astype(np.float32)))
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), wanted, rtol=0, atol=2e-4)
    assert wanted.std() > 0.05


def test_a_tone_over_silence_is_floored_eight_decades_below_its_peak() -> None:
    waveform = np.zeros(16_000)
    waveform[4000:6000] = np.sin(2 * np.pi * 1000 * np.arange(2000) / 16_000)
    features = log_mel_features(torch.from_numpy(waveform)).numpy()
    np.testing.assert_allclose(features, reference(waveform), rtol=0, atol=1e-9)
    assert features.max() - features.min() == pytest.approx(2.0)
    assert features[:5] == pytest.approx(features.min())


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_silence_is_finite(value: float) -> None:
    features = log_mel_features(torch.full((1600,), value))
    assert features.shape == (5, 160)
    assert features.isfinite().all()


@pytest.mark.parametrize("samples", [0, 1, MINIMUM_SAMPLES - 1])
def test_a_clip_too_short_for_one_frame_is_refused(samples: int) -> None:
    with pytest.raises(ValueError, match=f"at least 257 samples, got {samples}"):
        log_mel_features(torch.zeros(samples))


@settings(max_examples=25)
@example(samples=MINIMUM_SAMPLES, seed=0)
@example(samples=480, seed=0)
@example(samples=639, seed=0)
@example(samples=640, seed=0)
@given(samples=st.integers(MINIMUM_SAMPLES, 9000), seed=st.integers(0, 99))
def test_features_with_deltas_are_those_of_the_recipe(samples: int, seed: int) -> None:
    waveform = noise(samples, seed)
    features = delta_log_mel_features(torch.from_numpy(waveform))
    expected = delta_reference(waveform)
    assert features.shape == expected.shape
    assert np.abs(features.numpy() - expected).max() < 1e-9
