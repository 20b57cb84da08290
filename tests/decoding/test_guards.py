"""Silence, noise and loops are known for what they are, and speech is not taken for them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr_doge.audio import Voice, synthesize
from asr_doge.decoding.guards import (
    has_unlikely_labels,
    is_nonspeech,
    is_quiet_or_steady,
    silenced,
    steady_stretches,
    without_loops,
)

RATE = 16_000


def posteriors(*frames: tuple[int, float]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Log-posteriors in which each frame gives its label so much, and the others the rest."""
    rows = [[(1 - sure) / 9 if label != place else sure for place in range(10)] for label, sure in frames]
    return np.log(np.array(rows, dtype=np.float32))


@pytest.mark.parametrize("decibels", [-90, -60, -30, -6])
def test_noise_is_steady_at_any_level(decibels: float) -> None:
    noise = np.random.default_rng(0).standard_normal(4 * RATE).astype(np.float32)
    assert is_quiet_or_steady(noise * np.float32(10 ** (decibels / 20)), RATE)


@pytest.mark.parametrize("hertz", [50, 440, 3000])
def test_a_tone_is_steady(hertz: float) -> None:
    tone = np.sin(2 * np.pi * hertz * np.arange(4 * RATE) / RATE)
    assert is_quiet_or_steady((0.3 * tone).astype(np.float32), RATE)


def test_what_swells_and_fades_is_not() -> None:
    noise = np.random.default_rng(0).standard_normal(4 * RATE)
    swelling = noise * (1.2 + np.sin(2 * np.pi * 3 * np.arange(4 * RATE) / RATE))
    assert not is_quiet_or_steady((0.05 * swelling).astype(np.float32), RATE)


def test_a_clip_as_short_as_a_vowel_is_not_judged_by_its_level() -> None:
    vowel = np.sin(2 * np.pi * 200 * np.arange(RATE // 4) / RATE).astype(np.float32)
    assert not is_quiet_or_steady(vowel, RATE)
    assert is_quiet_or_steady(np.zeros(RATE // 4, dtype=np.float32), RATE)


def sound(kind: str, seconds: float, peak: float) -> np.typing.NDArray[np.float32]:
    """Noise or a tone, whose edges are as soft as a codec makes them."""
    time = np.arange(round(seconds * RATE)) / RATE
    wave = np.random.default_rng(0).uniform(-1, 1, len(time)) if kind == "noise" else np.sin(2 * np.pi * 1000 * time)
    edges = np.minimum(1, np.minimum(time, seconds - time) / 0.02)
    return (peak * edges * wave).astype(np.float32)


@pytest.mark.parametrize("kind", ["noise", "tone"])
@pytest.mark.parametrize("place", ["before", "after", "between"])
@pytest.mark.parametrize("seconds", [0.6, 2.0])
def test_a_loud_steady_sound_beside_speech_is_silenced_and_the_speech_stays(
    kind: str, place: str, seconds: float
) -> None:
    """A burst of noise before a voice was heard as a word."""
    said, pause = synthesize("seven three nine", Voice()), np.zeros(RATE // 5, dtype=np.float32)
    burst = sound(kind, seconds, 2 * float(np.abs(said).max()))
    parts = {
        "before": [burst, pause, said],
        "after": [said, pause, burst],
        "between": [said, pause, burst, pause, said],
    }
    expected = np.concatenate([np.zeros_like(part) if part is burst else part for part in parts[place]])
    clip = np.concatenate(parts[place])
    differing = np.abs(silenced(clip, steady_stretches(clip, RATE)) - expected)
    assert differing.max() < 0.01 * np.abs(burst).max()  # what of its edges is left can be no sound of speech


@pytest.mark.parametrize("text", ["seven three nine one", "zero zero zero", "the cat sat on the mat"])
@pytest.mark.parametrize("noise_decibels", [-100, -40, -20])
def test_speech_stays_as_it_is_in_noise_too(text: str, noise_decibels: float) -> None:
    said = synthesize(text, Voice())
    pause = np.zeros(RATE, dtype=np.float32)
    clip = np.concatenate([pause, said, pause])
    clip += np.abs(said).max() * sound("noise", len(clip) / RATE, float(10 ** (noise_decibels / 20)))
    assert steady_stretches(clip, RATE) == []


@given(st.integers(0, 3 * RATE))
def test_silence_of_any_length_stays_as_it_is(samples: int) -> None:
    clip = np.zeros(samples, dtype=np.float32)
    assert steady_stretches(clip, RATE) == []


def always() -> bool:
    return True


def never() -> bool:
    return False


def unasked() -> bool:
    raise AssertionError("nobody should listen where the head has no doubt")


def test_blanks_and_doubtful_letters_are_no_speech() -> None:
    blank = (0, 0.99)
    assert is_nonspeech(posteriors(*[blank] * 5), never)
    assert is_nonspeech(posteriors(blank, (3, 0.5), blank, (4, 0.6), (5, 0.5)), never)
    assert not is_nonspeech(posteriors(blank, (3, 0.95), blank, (4, 0.92), (5, 0.92)), never)


def test_a_voice_may_be_hard_to_understand() -> None:
    blank = (0, 0.99)
    assert not is_nonspeech(posteriors(blank, (3, 0.5), blank, (4, 0.6), (5, 0.5)), always)
    assert is_nonspeech(posteriors(*[blank] * 5), always)


def test_voices_are_listened_for_in_doubt_only() -> None:
    blank = (0, 0.99)
    assert is_nonspeech(posteriors(*[blank] * 5), unasked)
    assert not is_nonspeech(posteriors(blank, (3, 0.95), blank, (4, 0.95)), unasked)


@pytest.mark.parametrize(("seconds", "least", "expected"), [(3.0, 0.54, False), (3.0, 0.56, True), (0.5, 0.56, False)])
def test_labels_that_are_hardly_likely_are_no_speech_but_a_word(seconds: float, least: float, expected: bool) -> None:
    """0.55 on average; half a second may hold one unsure word."""
    assert has_unlikely_labels([0.5, 0.6], seconds, least) is expected


def test_nothing_but_blanks_has_no_unlikely_label() -> None:
    assert not has_unlikely_labels([], 3.0, 1.0)


def test_without_a_head_the_voice_decides() -> None:
    assert is_nonspeech(None, never)
    assert not is_nonspeech(None, always)


def test_a_single_letter_must_be_surer() -> None:
    blank = (0, 0.99)
    assert is_nonspeech(posteriors(blank, (3, 0.92), (3, 0.92), blank), never)
    assert not is_nonspeech(posteriors(blank, (3, 0.97), (3, 0.97), blank), never)
    assert not is_nonspeech(posteriors(blank, (3, 0.92), blank, (3, 0.92)), never)  # two letters


def kept(text: str, draft: str | None) -> str:
    words = text.split()
    return " ".join(words[n] for n in without_loops(words, draft.split() if draft is not None else None))


@pytest.mark.parametrize(
    ("text", "draft", "expected"),
    [
        ("a b" + " c" * 20, "a b c", "a b c"),
        ("so it goes" + " and so on" * 9, "so it goes and so on", "so it goes and so on"),
        ("a" + " b c" * 10 + " d e", "a b c d e", "a b c d e"),
        ("no no no no no", "no no no no no", "no no no no no"),
        ("no no no no no", "no nno nono", "no no no no no"),  # about as long as the draft: said, if not drafted so
        ("a a a" + " a" * 20, "a a a", "a a a"),
        ("a b c", "", "a b c"),
        ("ha" + " ha" * 11, None, "ha"),
        ("ha ha ha ha", None, "ha ha ha ha"),
        ("", "", ""),
    ],
)
def test_only_what_goes_round_and_round_is_cut(text: str, draft: str | None, expected: str) -> None:
    assert kept(text, draft) == expected


@given(st.lists(st.sampled_from(["one", "two", "three"]), max_size=12))
def test_a_text_like_its_draft_is_left_alone(words: list[str]) -> None:
    assert without_loops(words, words) == list(range(len(words)))
