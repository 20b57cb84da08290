"""Guards: rules that keep a language model from writing what nobody said.

Promises: each guard is a function without state and says whether it acted. Speech for which the CTC head is sure of its
labels keeps its text, unless its level is that of a steady noise.
It does not detect speech itself.
"""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from asr_doge.decoding.ctc import BLANK

GuardName = Literal["silence", "length", "loop"]

DIGITAL_SILENCE_PEAK = 10 ** (-80 / 20)
"""A clip with nothing louder than -80 dB of full scale is digital silence; no model is needed to call it empty."""
LEVEL_FRAME_SECONDS = 0.025
STEADY_DECIBELS = 3.0
"""Noise and tones stay within this range of levels; speech, with its pauses and consonants, does not, even in noise."""
STEADY_SECONDS = 0.5
"""The steadiness of shorter clips is not judged: a vowel may be as long."""
STEADY_STRETCH_DECIBELS = 2.0
"""The same for a stretch within a clip. White noise stays within 1.3 dB; of 633 sentences and 3,400 clips of digits the
steadiest loud half second is one of 2.65 (docs/decoding.md)."""
AS_LOUD_DECIBELS = 3.0
"""A steady stretch is silenced only if its level is within this of the clip's loudest sound, since it then hides any
speech. Quieter noise between words stays: models that were trained with noise cope with it."""
FALLING_DECIBELS = 6.0
"""A sound that was switched off fades by more than this from one frame to the next, also where a codec smears it."""
SURE_POSTERIOR, SURE_LABEL = 0.9, 0.95
"""From this mean posterior of its labels on, or posterior of a single label, a CTC text needs no detected speech.

nano's head is often less sure of short words than of beeps and drums; the detector tells these apart."""

UNLIKELY_SECONDS = 2.0
"""Shorter clips are not judged by how likely their labels are: a word alone is often as unlikely as a noise."""

LONGEST_PHRASE = 8
LOOP_REPEATS, LOOP_REPEATS_WITHOUT_DRAFT = 4, 8
"""Repeats of a phrase in a row that may be a loop; with a draft, only in a text that is far longer than the draft."""
WORDS_PER_DRAFT_WORD, EXTRA_WORDS = 1.5, 2


def is_quiet_or_steady(waveform: NDArray[np.float32], sampling_rate: int) -> bool:
    """Whether a clip `[samples]` is silence, or sound of constant level, not counting offset and hum."""
    if np.ptp(waveform) / 2 <= DIGITAL_SILENCE_PEAK:
        return True
    if len(waveform) <= STEADY_SECONDS * sampling_rate:
        return False
    low, high = np.percentile(_levels(waveform, sampling_rate), [5, 95])
    return bool(high - low < STEADY_DECIBELS)


def steady_stretches(waveform: NDArray[np.float32], sampling_rate: int) -> list[tuple[int, int]]:
    """Loud noise and tones within a clip `[samples]`, as beeps and bursts of noise are: start and end, in samples.

    Their level stays within `STEADY_STRETCH_DECIBELS` for `STEADY_SECONDS` or more.
    """
    shortest = round(STEADY_SECONDS / LEVEL_FRAME_SECONDS)
    levels = _levels(waveform, sampling_rate)
    if len(levels) < shortest or np.ptp(waveform) / 2 <= DIGITAL_SILENCE_PEAK:
        return []
    windows = np.lib.stride_tricks.sliding_window_view(levels, shortest)
    is_loud = np.median(windows, axis=1) > np.percentile(levels, 95) - AS_LOUD_DECIBELS
    stretches: list[tuple[int, int]] = []  # in frames
    for place in np.flatnonzero((np.ptp(windows, axis=1) < STEADY_STRETCH_DECIBELS) & is_loud).tolist():
        start, end = place, place + shortest
        if stretches and start <= stretches[-1][1]:
            start = stretches.pop()[0]
        stretches.append((start, end))
    frame = int(LEVEL_FRAME_SECONDS * sampling_rate)
    edges = [(_fallen(levels, start, -1), _fallen(levels, end - 1, 1) + 1) for start, end in stretches]
    return [(start * frame, end * frame if end < len(levels) else len(waveform)) for start, end in edges]


def _fallen(levels: NDArray[np.float64], place: int, step: int) -> int:
    """The frame in which a sound at frame `place` has faded, going forwards or backwards; the next one at least."""
    last = len(levels) - 1 if step > 0 else 0
    if place != last:
        place += step
    while place != last and levels[place + step] < levels[place] - FALLING_DECIBELS:
        place += step
    return place


def silenced(waveform: NDArray[np.float32], stretches: Sequence[tuple[int, int]]) -> NDArray[np.float32]:
    """A clip `[samples]` with silence in place of some stretches of it; the same object if there are none."""
    if not stretches:
        return waveform
    waveform = waveform.copy()
    for start, end in stretches:
        waveform[start:end] = 0.0
    return waveform


def _levels(waveform: NDArray[np.float32], sampling_rate: int) -> NDArray[np.float64]:
    """Level of each complete frame, in decibels, not counting offset and hum."""
    # Differences of neighbouring samples: they have no offset, and hum of 50 Hz is 34 dB lower.
    differences = np.diff(waveform)
    frame = int(LEVEL_FRAME_SECONDS * sampling_rate)
    frames = differences[: len(differences) // frame * frame].reshape(-1, frame)
    levels: NDArray[np.float64] = 10 * np.log10(np.square(frames, dtype=np.float64).mean(axis=1) + 1e-12)
    return levels


def is_blank(log_posteriors: NDArray[np.float32]) -> bool:
    """Whether the CTC head gives only blanks for a clip; its log-posteriors are `[T, V]`."""
    return bool((log_posteriors.argmax(axis=1) == BLANK).all())


def has_unlikely_labels(label_probabilities: Sequence[float], seconds: float, silent_below: float) -> bool:
    """Whether the labels that a CTC head gives for a clip have a mean probability below `silent_below`.

    With english, those of a siren and of Russian speech do; those of seven other languages do not (docs/english.md).

    Args:
        label_probabilities: of its best path, at each frame that is no blank.
        seconds: length of the clip; a short one, which may be one unsure word, is not judged.
        silent_below: as in `ASRDogeConfig`.
    """
    return seconds >= UNLIKELY_SECONDS and len(label_probabilities) > 0 and fmean(label_probabilities) < silent_below


def is_nonspeech(log_posteriors: NDArray[np.float32] | None, has_voice: Callable[[], bool]) -> bool:
    """Whether a clip has no speech: the CTC head gives only blanks, or is unsure or missing and the detector agrees.

    Args:
        log_posteriors: `[T, V]`, of the head; None without one.
        has_voice: runs the voice activity detector on the clip; called only in doubt, since it takes time.
    """
    if log_posteriors is None:
        return not has_voice()
    if is_blank(log_posteriors):
        return True
    best = log_posteriors.argmax(axis=1)
    spoken = best != BLANK
    label_count = np.count_nonzero(spoken & (best != np.concatenate([[BLANK], best[:-1]])))
    sureness = float(np.exp(log_posteriors.max(axis=1)[spoken].mean()))
    return sureness < (SURE_LABEL if label_count == 1 else SURE_POSTERIOR) and not has_voice()


def without_loops(words: Sequence[str], draft: Sequence[str] | None) -> list[int]:
    """Numbers of the words to keep of a text: of a phrase that loops, as many repeats as the draft has.

    Args:
        words: of the text.
        draft: words of the CTC text, if there is a head.
    """
    if draft is not None and len(words) <= WORDS_PER_DRAFT_WORD * len(draft) + EXTRA_WORDS:
        return list(range(len(words)))  # a real "no no no no" is kept
    limit = LOOP_REPEATS if draft is not None else LOOP_REPEATS_WITHOUT_DRAFT
    kept: list[int] = []
    place = 0
    while place < len(words):
        length, repeats = _loop_at(words, place)
        said = max(1, _most_repeats(draft, length)) if draft is not None else 1
        if repeats >= limit and repeats > said:
            kept += range(place, place + length * said)
            place += length * repeats
        else:
            kept.append(place)
            place += 1
    return kept


def _loop_at(words: Sequence[str], place: int) -> tuple[int, int]:
    """Length and number of repeats of the phrase that repeats most from `place` on."""
    loops = ((length, _repeats(words, place, length)) for length in range(1, LONGEST_PHRASE + 1))
    return max(loops, key=lambda loop: loop[1])


def _repeats(words: Sequence[str], place: int, length: int) -> int:
    """Number of times in a row that the phrase of `length` words at `place` occurs."""
    phrase = list(words[place : place + length])
    if len(phrase) < length:
        return 0
    count = 1
    while list(words[place + count * length : place + (count + 1) * length]) == phrase:
        count += 1
    return count


def _most_repeats(words: Sequence[str], length: int) -> int:
    """The largest number of times in a row that any phrase of `length` words occurs."""
    return max((_repeats(words, place, length) for place in range(len(words))), default=0)
