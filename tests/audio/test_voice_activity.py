"""Speech is told from silence, noise and tones, however it comes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from asr_doge.audio import SAMPLE_RATE, Voice, synthesize, voice_activity
from asr_doge.audio.voice_activity import VoiceActivityDetector, has_voice

FRAME_SECONDS = 512 / SAMPLE_RATE  # what Silero reads at a time
SPOKEN = synthesize("seven three nine", Voice())
SILENCE = np.zeros(2 * SAMPLE_RATE, dtype=np.float32)


def second(number: float) -> int:
    """The frame in which it begins."""
    return round(number / FRAME_SECONDS)


def test_speech_is_found_where_it_is() -> None:
    may_be_speech = VoiceActivityDetector().feed(np.concatenate([SILENCE, SPOKEN, SILENCE]))
    spoken = np.flatnonzero(may_be_speech) * FRAME_SECONDS
    assert spoken[0] == pytest.approx(2.0, abs=0.3)
    assert spoken[-1] == pytest.approx(2.0 + len(SPOKEN) / SAMPLE_RATE, abs=0.4)


def other_sounds() -> dict[str, NDArray[np.float32]]:
    """What is no speech, but for some of it as loud, as brief and as lively."""
    time = np.arange(4 * SAMPLE_RATE) / SAMPLE_RATE
    noise = np.random.default_rng(0).standard_normal(len(time))
    notes = np.repeat(262 * 2 ** (np.array([0, 4, 7, 12, 7, 5, 2, 0]) / 12), SAMPLE_RATE // 2)
    made = {
        "silence": np.zeros(len(time)),
        "white noise": 0.05 * noise,
        "tone": 0.3 * np.sin(2 * np.pi * 440 * time),
        "melody": 0.3 * np.sin(2 * np.pi * np.cumsum(notes) / SAMPLE_RATE) * np.exp(-4 * (time % 0.5)),
        "drums": 0.3 * noise * np.exp(-30 * (time % 0.25)),
        "swelling noise": 0.05 * noise * (1 + np.sin(4 * np.pi * time)),
        "blink": 0.05 * noise[: SAMPLE_RATE // 5],
    }
    return {name: sound.astype(np.float32) for name, sound in made.items()}


@pytest.mark.parametrize("kind", ["silence", "white noise", "tone"])
def test_steady_sound_is_no_speech(kind: str) -> None:
    assert not any(VoiceActivityDetector().feed(other_sounds()[kind]))


def test_what_is_nearly_as_loud_as_the_loudest_may_be_speech() -> None:
    noise = np.random.default_rng(0).normal(0, 0.2, SAMPLE_RATE)
    waveform = np.concatenate([0.01 * noise, noise, 0.2 * noise, 0.01 * noise]).astype(np.float32)
    may_be_speech = VoiceActivityDetector().feed(waveform)
    assert all(may_be_speech[second(1) + 1 : second(3) - 1])
    assert not any(may_be_speech[second(3) + 1 :])


def test_lasting_noise_is_not_sound_for_being_the_loudest() -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, 120 * SAMPLE_RATE).astype(np.float32)
    assert not any(VoiceActivityDetector().feed(noise))


@pytest.mark.parametrize("word", ["four", "six", "eight"])
@pytest.mark.parametrize("peak", [0.9, 0.02])
def test_a_short_word_is_a_voice_however_soft(word: str, peak: float) -> None:
    spoken = synthesize(word, Voice(words_per_minute=200))
    loud = np.flatnonzero(np.abs(spoken) > 0.01)
    clip = spoken[loud[0] : loud[-1] + 1]
    assert has_voice(clip * np.float32(peak / np.abs(clip).max()))


@pytest.mark.parametrize("kind", sorted(other_sounds()))
def test_other_sound_is_no_voice(kind: str) -> None:
    assert not has_voice(other_sounds()[kind])


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


def test_a_model_that_is_used_again_remembers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    idle: list[object] = []
    monkeypatch.setattr(voice_activity, "_idle", idle)
    alone = VoiceActivityDetector().feed(SPOKEN)
    assert len(idle) == 1
    assert has_voice(SPOKEN)
    VoiceActivityDetector().feed(SPOKEN[: len(SPOKEN) // 2])
    assert len(idle) == 1
    assert VoiceActivityDetector().feed(SPOKEN) == alone


def test_two_detectors_at_once_share_no_model() -> None:
    one, other = VoiceActivityDetector(), VoiceActivityDetector()
    flags: list[bool] = []
    for block in np.array_split(SPOKEN, 9):
        flags += one.feed(block)
        other.feed(block[::-1])
    assert flags == VoiceActivityDetector().feed(SPOKEN)
