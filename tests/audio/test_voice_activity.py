"""Speech is told from silence, noise and tones, however it comes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_doge.audio import SAMPLE_RATE, Voice, synthesize
from asr_doge.audio.voice_activity import FRAME_SECONDS, Activity, VoiceActivityDetector, speech_spans

SPOKEN = synthesize("seven three nine", Voice())
SILENCE = np.zeros(2 * SAMPLE_RATE, dtype=np.float32)


def test_speech_is_found_where_it_is() -> None:
    waveform = np.concatenate([SILENCE, SPOKEN, SILENCE])
    spans = speech_spans(waveform)
    assert spans[0][0] == pytest.approx(2.0, abs=0.3)
    assert spans[-1][1] == pytest.approx(2.0 + len(SPOKEN) / SAMPLE_RATE, abs=0.4)


@pytest.mark.parametrize("kind", ["silence", "white noise", "tone"])
def test_other_sound_is_no_speech(kind: str) -> None:
    time = np.arange(5 * SAMPLE_RATE) / SAMPLE_RATE
    waveform = {
        "silence": np.zeros(len(time)),
        "white noise": np.random.default_rng(0).normal(0, 0.05, len(time)),
        "tone": 0.3 * np.sin(2 * np.pi * 440 * time),
    }[kind]
    assert speech_spans(waveform.astype(np.float32)) == []


def test_what_is_nearly_as_loud_as_the_loudest_may_be_speech() -> None:
    noise = np.random.default_rng(0).normal(0, 0.2, SAMPLE_RATE)
    waveform = np.concatenate([0.01 * noise, noise, 0.2 * noise, 0.01 * noise]).astype(np.float32)
    heard = VoiceActivityDetector().feed(waveform)
    second = round(1 / FRAME_SECONDS)
    assert set(heard[second + 1 : 3 * second - 1]) == {Activity.SOUND}
    assert set(heard[3 * second + 1 :]) == {Activity.NOTHING}


def test_lasting_noise_is_not_sound_for_being_the_loudest() -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, 120 * SAMPLE_RATE).astype(np.float32)
    assert set(VoiceActivityDetector().feed(noise)) == {Activity.NOTHING}


@settings(max_examples=10)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=8))
def test_how_samples_arrive_changes_nothing(sizes: list[int]) -> None:
    waveform = np.concatenate([SPOKEN[:12_000], SILENCE[:1000]])
    detector = VoiceActivityDetector()
    flags = []
    start = 0
    for size in [*sizes, len(waveform)]:
        flags += detector.feed(waveform[start : start + size])
        start += size
    assert flags == VoiceActivityDetector().feed(waveform)
    assert len(flags) == int(len(waveform) / SAMPLE_RATE / FRAME_SECONDS)
