"""Augmentation does what its names and units say, and never breaks a clip."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from asr_doge.audio.augmentation import (
    Augmentation,
    add_noise,
    change_speed,
    mask_features,
    reverberate,
    scale_level,
    telephone_band,
)
from asr_doge.audio.log_mel import MEL_BANDS
from asr_doge.errors import ConfigError

RATE = 16_000
EVERYTHING = Augmentation(
    speed_probability=1,
    reverberation_probability=1,
    noise_probability=1,
    telephone_probability=1,
    gain_probability=1,
)
NOTHING = Augmentation(
    speed_probability=0,
    reverberation_probability=0,
    noise_probability=0,
    telephone_probability=0,
    gain_probability=0,
)


def tone(frequency: float, seconds: float = 1.0) -> NDArray[np.float32]:
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(round(RATE * seconds)) / RATE)).astype(np.float32)


def white(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    return 0.1 * np.random.default_rng(seed).standard_normal(round(RATE * seconds), dtype=np.float32)


def decibels(ratio: float) -> float:
    return float(10 * np.log10(ratio))


def power(waveform: NDArray[np.float32], low: float = 0.0, high: float = RATE) -> float:
    """Mean power between two frequencies, in Hz."""
    spectrum = np.abs(np.fft.rfft(waveform.astype(np.float64))) ** 2
    frequencies = np.fft.rfftfreq(waveform.size, 1 / RATE)
    return float(spectrum[(frequencies >= low) & (frequencies < high)].sum())


@settings(deadline=None)  # the first call imports scipy
@given(
    samples=st.integers(0, 4000),
    level=st.sampled_from([0.0, 1e-38, 1e-6, 0.1, 1.0]),
    seed=st.integers(0, 2**32),
    rate=st.sampled_from([8000, 16000, 22050]),
)
def test_any_clip_at_any_level_stays_sound(samples: int, level: float, seed: int, rate: int) -> None:
    clip = np.float32(level) * np.random.default_rng(seed).uniform(-1, 1, samples).astype(np.float32)
    before = clip.copy()
    varied = EVERYTHING(clip, rate, np.random.default_rng(seed))
    assert varied.dtype == np.float32
    assert np.isfinite(varied).all()
    assert samples / 1.1 - 1 <= varied.size <= samples / 0.9 + 1
    np.testing.assert_array_equal(clip, before)
    np.testing.assert_array_equal(varied, EVERYTHING(clip, rate, np.random.default_rng(seed)))


def test_silence_stays_silent() -> None:
    assert not EVERYTHING(np.zeros(8000, dtype=np.float32), RATE, np.random.default_rng(0)).any()


def test_every_call_varies_the_clip_anew() -> None:
    rng = np.random.default_rng(0)
    first, second = Augmentation()(white(0.5), RATE, rng), Augmentation()(white(0.5), RATE, rng)
    assert first.size != second.size or not np.array_equal(first, second)


def test_without_probabilities_nothing_changes() -> None:
    clip = white(0.1)
    assert NOTHING(clip, RATE, np.random.default_rng(0)) is clip


def test_the_probabilities_are_shares_of_clips() -> None:
    rarely = Augmentation(
        0, reverberation_probability=0, noise_probability=0, telephone_probability=0.3, gain_probability=0
    )
    rng = np.random.default_rng(0)
    clip = white(0.01)
    changed = sum(rarely(clip, RATE, rng) is not clip for _ in range(400))
    assert 90 <= changed <= 150


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1, 2.0])
def test_speed_changes_duration_and_pitch_together(factor: float) -> None:
    faster = change_speed(tone(500), factor)
    assert faster.size == pytest.approx(RATE / factor, abs=1)
    peak = np.abs(np.fft.rfft(faster)).argmax() * RATE / faster.size
    assert peak == pytest.approx(500 * factor, abs=2)


@pytest.mark.parametrize("gain_db", [-20.0, 0.0, 6.0])
def test_the_level_is_in_decibels(gain_db: float) -> None:
    assert decibels(power(scale_level(tone(500), gain_db)) / power(tone(500))) == pytest.approx(gain_db, abs=0.01)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_noise_has_the_ratio_and_the_colour_asked_for(exponent: float) -> None:
    clip = tone(500, seconds=4)
    noise = add_noise(clip, 10.0, np.random.default_rng(0), exponent) - clip
    assert decibels(power(clip) / power(noise)) == pytest.approx(10.0, abs=0.05)
    # Per octave upwards, the band doubles and the density falls by 2 ** exponent.
    fall = decibels(power(noise, 500, 1000) / power(noise, 2000, 4000))
    assert fall == pytest.approx(6.02 * (exponent - 1), abs=0.7)


def test_brown_noise_is_heard_and_not_a_drift() -> None:
    clip = tone(500, seconds=4)
    noise = add_noise(clip, 10.0, np.random.default_rng(0), 2.0) - clip
    assert power(noise, 0, 20) < 0.5 * power(noise)


def test_the_telephone_keeps_the_voice_and_loses_the_hiss() -> None:
    clip = white(2)
    narrow = telephone_band(clip, RATE)
    assert narrow.size == clip.size
    assert decibels(power(narrow, 5000) / power(clip, 5000)) < -40
    assert decibels(power(narrow, 100, 3000) / power(clip, 100, 3000)) == pytest.approx(0.0, abs=0.2)


def test_a_recording_from_a_telephone_is_left_alone() -> None:
    clip = white(0.1)
    assert telephone_band(clip, 8000) is clip


@pytest.mark.parametrize("rt60", [0.2, 0.5])
def test_echoes_decay_by_60_db_in_the_time_asked_for(rt60: float) -> None:
    click = np.zeros(RATE, dtype=np.float32)
    click[100] = 1.0
    echoes = reverberate(click, RATE, rt60, np.random.default_rng(0))[101:]
    window = round(RATE * rt60 / 10)
    early, late = echoes[window : 2 * window], echoes[6 * window : 7 * window]
    assert decibels(float((early**2).sum() / (late**2).sum())) == pytest.approx(30.0, abs=3.0)


def test_a_room_keeps_length_level_and_the_order_of_events() -> None:
    clip = np.concatenate([np.zeros(4000, dtype=np.float32), white(1)])
    wet = reverberate(clip, RATE, 0.4, np.random.default_rng(0))
    assert wet.size == clip.size
    assert decibels(power(wet) / power(clip)) == pytest.approx(0.0, abs=0.01)
    assert np.abs(wet[:4000]).max() < 1e-5  # no echo comes before the sound
    other_room = reverberate(clip, RATE, 0.4, np.random.default_rng(1))
    assert not np.allclose(wet, other_room, atol=1e-3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("noise_probability", 1.5),
        ("gain_probability", -0.1),
        ("snr_db", (30.0, 5.0)),
        ("speed", (0.0, 1.1)),
        ("rt60_seconds", (0.0, 0.5)),
    ],
)
def test_a_wrong_setting_is_named(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"Augmentation\.{field} "):
        Augmentation(**{field: value})


def test_a_clip_that_would_become_too_long_keeps_its_speed() -> None:
    slower = Augmentation(**{**vars(NOTHING), "speed_probability": 1, "speed": (0.5, 0.5)})
    clip = white(0.1)
    assert len(slower(clip, RATE, np.random.default_rng(0), longest=2 * len(clip))) == 2 * len(clip)
    assert slower(clip, RATE, np.random.default_rng(0), longest=2 * len(clip) - 1) is clip


def test_masks_hide_some_and_leave_the_rest() -> None:
    features = torch.rand(200, 2 * MEL_BANDS) + 0.5
    masked = mask_features(features.clone(), np.random.default_rng(1))
    hidden = masked == 0
    assert 0 < hidden.float().mean() < 0.5
    assert torch.equal(masked[~hidden], features[~hidden])
    assert torch.equal(hidden[:, :MEL_BANDS], hidden[:, MEL_BANDS:])  # the same bands in both frames of a row
    mask_features(torch.ones(1, 2 * MEL_BANDS), np.random.default_rng(0))  # shorter than a mask
