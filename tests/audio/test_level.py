"""Offsets and hum are filtered out and quiet recordings raised for the detector; usual ones stay as they are."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import butter, sosfilt, sosfilt_zi

from asr_doge.audio import Voice, read_audio, read_clip, synthesize
from asr_doge.audio.level import DetectorInput, normalize_level, without_rumble
from asr_doge.audio.voice_activity import FRAME_SAMPLES, VoiceActivityDetector, has_voice
from asr_doge.decoding.guards import is_quiet_or_steady
from tests.audio.odd import RATE, tone

SPOKEN = np.concatenate(
    [np.zeros(RATE, dtype=np.float32), synthesize("seven three nine", Voice()), np.zeros(RATE, dtype=np.float32)]
)
SECONDS = len(SPOKEN) / RATE
HUM = tone(50, SECONDS, RATE, 0.2) + tone(150, SECONDS, RATE, 0.05)


def speech_seconds(samples: np.typing.NDArray[np.float32]) -> float:
    return sum(VoiceActivityDetector().feed(DetectorInput().feed(samples))) * FRAME_SAMPLES / RATE


@pytest.mark.parametrize("offset", [0.1, 0.2, 0.5, -0.5])
def test_an_offset_hides_no_speech_and_is_none(offset: float) -> None:
    assert not is_quiet_or_steady(SPOKEN / 2 + np.float32(offset), RATE)
    assert is_quiet_or_steady(np.full(RATE, offset, dtype=np.float32), RATE)
    assert has_voice(without_rumble(SPOKEN / 2 + np.float32(offset)))
    assert not has_voice(without_rumble(np.full(RATE, offset, dtype=np.float32)))
    assert speech_seconds((SPOKEN / 2 + offset).astype(np.float32)) == pytest.approx(
        speech_seconds((SPOKEN / 2).astype(np.float32)), abs=0.1
    )


def test_hum_hides_no_speech_and_is_none() -> None:
    assert not is_quiet_or_steady(SPOKEN + HUM, RATE)
    assert is_quiet_or_steady(HUM, RATE)
    assert has_voice(without_rumble(SPOKEN + HUM))
    assert speech_seconds(HUM) == 0
    assert speech_seconds(SPOKEN + HUM) == pytest.approx(speech_seconds(SPOKEN), abs=0.5)


@pytest.mark.parametrize("decibels", [-30, -45, -60])
def test_quiet_speech_is_heard_where_it_is(decibels: float) -> None:
    quiet = SPOKEN * np.float32(10 ** (decibels / 20) / np.abs(SPOKEN).max())
    assert speech_seconds(quiet.astype(np.float32)) == pytest.approx(speech_seconds(SPOKEN), abs=0.4)
    assert 0.1 <= np.abs(normalize_level(quiet)).max() <= 1 or decibels == -30


@given(st.floats(0.0071, 1.0), st.floats(-1.0, 1.0), st.integers(32, 4000))
def test_usual_levels_reach_the_encoder_untouched(peak: float, offset: float, samples: int) -> None:
    """Whatever they stand on, as long as it is within full scale."""
    clip = (tone(1000, samples / RATE, RATE, peak) + offset).astype(np.float32)
    assert normalize_level(clip) is clip or np.abs(clip).max() > 1


@pytest.mark.parametrize("offset", [0.02, -0.2, 0.5])
@pytest.mark.parametrize("decibels", [-45, -60])
def test_quiet_speech_on_an_offset_is_raised_too(decibels: float, offset: float) -> None:
    """As a 16-bit file has it; what reaches the encoder is the speech itself, at the level of quiet speech alone."""
    quiet = SPOKEN * (10 ** (decibels / 20) / np.abs(SPOKEN).max())
    stored = (np.round(32768 * (quiet + offset)) / 32768).astype(np.float32)
    raised = normalize_level(stored)
    assert np.abs(raised).max() == pytest.approx(0.3)
    assert np.corrcoef(raised, quiet)[0, 1] > 0.99


def test_levels_far_off_are_brought_back() -> None:
    assert np.abs(normalize_level(20 * SPOKEN / np.abs(SPOKEN).max())).max() == pytest.approx(0.9)
    assert np.abs(normalize_level(0.001 * SPOKEN / np.abs(SPOKEN).max())).max() == pytest.approx(0.3)
    rounding = np.tile(np.array([0, 2.0**-15], dtype=np.float32), 50)
    assert normalize_level(rounding) is rounding
    offset = np.full(100, 0.2, dtype=np.float32)
    assert normalize_level(offset) is offset
    nothing = np.zeros(0, dtype=np.float32)
    assert normalize_level(nothing) is nothing


@pytest.mark.parametrize(("peak", "read"), [(0.003, 0.3), (0.1, 0.1), (0.8, 0.8), (5.0, 0.9)])
def test_training_and_features_read_a_clip_at_the_level_of_transcription(
    tmp_path: Path, peak: float, read: float
) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(440, 0.5, RATE, peak), RATE, subtype="FLOAT")
    assert np.abs(read_audio(path)).max() == pytest.approx(peak, rel=1e-3)
    assert np.abs(read_clip(path)).max() == pytest.approx(read, rel=1e-2)


@settings(max_examples=10)
@given(st.integers(1, 3000), st.floats(-0.9, 0.9))
def test_the_filter_is_scipys_butterworth_settled_on_the_first_sample(samples: int, offset: float) -> None:
    signal = (SPOKEN[RATE : RATE + samples] / 2 + offset).astype(np.float32)
    sections = butter(4, 100, "highpass", fs=RATE, output="sos")
    expected, _ = sosfilt(sections, signal, zi=sosfilt_zi(sections) * signal[0])
    np.testing.assert_allclose(without_rumble(signal), expected, atol=1e-7)


@settings(max_examples=10)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=8))
def test_how_samples_arrive_changes_nothing(sizes: list[int]) -> None:
    samples = (SPOKEN[RATE : 2 * RATE] * 0.01 + np.float32(0.1)).astype(np.float32)
    detector_input = DetectorInput()
    edges = [min(edge, len(samples)) for edge in np.cumsum([0, *sizes])]
    fed = [detector_input.feed(samples[a:b]) for a, b in zip(edges, [*edges[1:], len(samples)], strict=True)]
    np.testing.assert_allclose(np.concatenate(fed), DetectorInput().feed(samples), atol=1e-6)
