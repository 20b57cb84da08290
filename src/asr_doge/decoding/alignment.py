"""Compute word times: align the words of a text with the frames of the CTC head.

Promises: the best of all ways to spell the text over the frames (Viterbi), for any text: characters that the head
cannot spell take no frame, and a text too long for its clip is spread evenly. Words beside a pause begin and end at
it. Words keep their order and do not overlap.
It does not know where the text came from; it need not be the CTC head's own.

A CTC head shows which character was spoken, but not exactly when: its label is at a frame near it, and where heads
learn to put it differs. The alignment assumes one of two things, whichever the head's `first_label_delay` says. Without
one, the last label of a word is at its end or in the pause after it (nano's is within 0.06 s of the end if there is no
pause), and the others may be anywhere. With one, the first label of a word comes so long after it begins (english's),
and the others may be anywhere. Either shows roughly where two words meet, and loudness shows exactly where. A head
that does neither has wrong times in unbroken speech.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from asr_doge.decoding.ctc import BLANK, cannot_spell, ctc_label_ids, label_log_posteriors
from asr_doge.models.encoders import SpeechEncoder

LEAD_SECONDS, TAIL_SECONDS = 0.15, 0.08
"""Without a pause, a word begins at most `LEAD_SECONDS` before its first label, and the last word of a clip ends at
most `TAIL_SECONDS` after its last label."""
TAIL_AFTER_BEGINNING_SECONDS = 0.4
"""`TAIL_SECONDS` for a head with a `first_label_delay`: as long as a short word."""
NO_PAUSE_COST = 0.05
"""Cost of a word boundary outside pauses, in seconds: a pause this near to where the labels put it is preferred."""
PAUSE_WORTH = 0.5
"""A longer pause may be farther away, by this share of its length. This value and the one above were chosen on strings
of digits in voices and takes that docs/decoding.md does not report on."""
MOMENT_SECONDS = 0.01
"""Resolution of word times; the level is measured in moments of this length."""
EDGE_SECONDS = 0.03
"""A silence this near to an end of the clip extends to it, in seconds."""
PAUSE_MOMENTS = 4
"""A shorter silence counts as part of a word, for example before a plosive."""
PAUSE_LEVEL, FLOOR_DECIBELS = 0.1, 50.0
"""A moment is silent if its level is in the lowest tenth of the range from the clip's quiet to its loud moments, in
decibels; quiet ones count as at most `FLOOR_DECIBELS` below the loud ones."""


UNALIGNED_LOG_POSTERIOR = -20.0
"""Log-posterior of the words of a text that is too long for its clip."""


@dataclass(frozen=True)
class AlignedWord:
    """A word's start and end, in seconds, and the mean log-posterior of its labels (None if it has none)."""

    start: float
    end: float
    log_posterior: float | None


@dataclass(frozen=True)
class LabelFrames:
    """Frames of a word's first and last label, and the mean log-posterior of all its labels."""

    first: int
    last: int
    log_posterior: float


def align_words(
    encoder: SpeechEncoder,
    log_posteriors: NDArray[np.float32],
    words: Sequence[str],
    waveform: NDArray[np.float32],
    sampling_rate: int,
) -> list[AlignedWord]:
    """Times of the words of a clip.

    Args:
        encoder: the owner of the head; it converts text into ids.
        log_posteriors: `[T, V]`, natural logarithms, T at least 1.
        words: of the text, in order.
        waveform: `[samples]`, the clip.
        sampling_rate: in Hz.
    """
    seconds = len(waveform) / sampling_rate
    is_foreign = cannot_spell(encoder, "".join(words))
    frames = None if is_foreign else label_frames(encoder, log_posteriors, words)
    if frames is None:
        edges = np.linspace(0, seconds, len(words) + 1).tolist()
        return [
            AlignedWord(start, end, None if is_foreign else UNALIGNED_LOG_POSTERIOR) for start, end in pairwise(edges)
        ]
    frame_seconds = 1 / encoder.ctc_frame_rate_hz
    return _word_times(frames, frame_seconds, encoder.first_label_delay, seconds, _pauses(waveform, sampling_rate))


def label_frames(
    encoder: SpeechEncoder, log_posteriors: NDArray[np.float32], words: Sequence[str]
) -> list[LabelFrames | None] | None:
    """Where the labels of each word are, None for a word without any; None if the words do not fit into the clip.

    Arguments as in `align_words`.
    """
    labels, spans = _labels(encoder, words)
    emissions = label_log_posteriors(log_posteriors, labels)
    path = _best_path(emissions, log_posteriors[:, BLANK])
    if path is None:
        return None
    spoken = np.flatnonzero(path >= 0)
    on_path = path[spoken]  # every character of the text, in order, each at one frame or more
    numbers = np.arange(len(labels))
    starts, ends = on_path.searchsorted(numbers), on_path.searchsorted(numbers, side="right")
    best = np.maximum.reduceat(emissions[spoken, on_path], starts)
    first, last = spoken[starts].tolist(), spoken[ends - 1].tolist()
    return [
        LabelFrames(first[span[0]], last[span[-1]], float(best[span.start : span.stop].mean())) if span else None
        for span in spans
    ]


def _labels(encoder: SpeechEncoder, words: Sequence[str]) -> tuple[list[tuple[int, ...]], list[range]]:
    """The labels of each character of the text, and which of these characters each word has.

    Between words is a space, which no word has; a blank may take its place.
    """
    between = (BLANK, *encoder.ctc_ids(" "))
    labels: list[tuple[int, ...]] = []
    spans = []
    for word in words:
        spelled = ctc_label_ids(encoder, word)
        if labels and spelled:
            labels.append(between)
        spans.append(range(len(labels), len(labels) + len(spelled)))
        labels += spelled
    return labels, spans


def _best_path(emissions: NDArray[np.float32], blank: NDArray[np.float32]) -> NDArray[np.int64] | None:
    """For each frame, the character `[T]` on the best path, -1 for blank; None if the text does not fit.

    States alternate: blank, character, blank, character, …, blank. A blank between two characters may be skipped unless
    they are the same.
    """
    frames, labels = emissions.shape
    if labels == 0:
        return np.full(frames, -1)
    states = 2 * labels + 1
    skip_cost = np.full(states, -np.inf)
    skip_cost[3::2][(emissions[:, 1:] != emissions[:, :-1]).any(axis=0)] = 0
    # Two columns before the first state, from which none is reached; until it is its turn, a frame has its own scores.
    best = np.empty((frames, states + 2))
    best[:, :2], best[:, 2::2], best[:, 3::2] = -np.inf, blank[:, None], emissions
    best[0, 4:] = -np.inf
    skipped, reached = np.empty((2, states))
    # Each call of NumPy counts: a frame takes four.
    for skip, step, stay, after in zip(best[:, :-2], best[:, 1:-1], best[:, 2:], best[1:, 2:], strict=False):
        np.add(skip, skip_cost, out=skipped)
        np.maximum(stay, step, out=reached)
        np.maximum(reached, skipped, out=reached)
        np.add(after, reached, out=after)
    state = int(states - 1 if best[-1, -1] >= best[-1, -2] else states - 2)
    if not np.isfinite(best[-1, state + 2]):
        return None
    values, costs, visited = best.data, skip_cost.tolist(), [state]  # single values come sooner from a memoryview
    for frame in range(frames - 2, -1, -1):
        skip, step, stay = values[frame, state] + costs[state], values[frame, state + 1], values[frame, state + 2]
        if step > stay or skip > stay:
            state -= 1 if step >= skip else 2
        visited.append(state)
    path = np.array(visited[::-1])
    return np.where(path % 2, path // 2, -1)


def _word_times(
    frames: Sequence[LabelFrames | None],
    frame_seconds: float,
    delay: float | None,
    seconds: float,
    pauses: Sequence[tuple[float, float]],
) -> list[AlignedWord]:
    """Start and end of each word, in a clip of `seconds`; `delay` is the head's `first_label_delay`.

    A word without labels gets no duration and is placed at the end of the word before it.
    """
    aligned: list[AlignedWord] = []
    spoken = [word for word in frames if word is not None]
    if spoken:
        lead, tail = (LEAD_SECONDS, TAIL_SECONDS) if delay is None else (delay, TAIL_AFTER_BEGINNING_SECONDS)
        begin, finish = _speech_extent(
            spoken[0].first * frame_seconds - lead, (spoken[-1].last + 1) * frame_seconds + tail, seconds, pauses
        )
        within = [pause for pause in pauses if begin < pause[0] and pause[1] < finish]
        moments = np.arange(begin, finish + MOMENT_SECONDS, MOMENT_SECONDS).clip(max=finish)
        meetings = _word_boundaries(spoken, frame_seconds, delay, moments, within)
        starts, ends = iter([begin, *(start for _, start in meetings)]), iter([*(end for end, _ in meetings), finish])
    for word in frames:
        end = aligned[-1].end if aligned else 0.0
        if word is None:
            aligned.append(AlignedWord(end, end, None))
        else:
            stop = next(ends)
            start = max(end, min(next(starts), stop - MOMENT_SECONDS))  # a word takes time
            aligned.append(AlignedWord(start, max(start, stop), word.log_posterior))
    return aligned


def _speech_extent(
    first: float, last: float, seconds: float, pauses: Sequence[tuple[float, float]]
) -> tuple[float, float]:
    """Start of the first word and end of the last: at the silence at the clip's ends, if there is any.

    A label may come as late as after its word, so other silences may be within the words.

    Args:
        first, last: where the labels say that the words begin and end, in seconds.
        seconds: of the clip.
        pauses: in it.
    """
    begin = max((end for start, end in pauses if start < EDGE_SECONDS), default=max(first, 0.0))
    finish = min((start for start, end in pauses if end > seconds - EDGE_SECONDS), default=min(last, seconds))
    return begin, max(begin, finish)


def _word_boundaries(
    spoken: Sequence[LabelFrames],
    frame_seconds: float,
    delay: float | None,
    moments: NDArray[np.float64],
    pauses: Sequence[tuple[float, float]],
) -> list[tuple[float, float]]:
    """End of each word but the last and start of the next: the cheapest choice of moments and pauses in order.

    A moment costs `NO_PAUSE_COST`, a pause nothing; both cost their distance from where the labels say that the words
    meet (a pause anywhere in it, if they say where the first of them ends, and its end, if where the second begins).
    A pause earns `PAUSE_WORTH` of its length, so that a long one is not left within a word.
    """
    edges = np.ravel([(start, end + MOMENT_SECONDS / 2) for start, end in pauses])  # its end is no place of its own
    in_pause = np.searchsorted(edges, moments, side="right") % 2 == 1
    places = np.concatenate([moments[~in_pause, None].repeat(2, axis=1), np.reshape(pauses, (-1, 2))])
    places = places[np.argsort(places[:, 0])]
    starts, ends = places.T
    if delay is None:
        expected = frame_seconds * np.array([word.last for word in spoken[:-1]], dtype=np.float64)[:, None]
        costs = np.maximum(starts - expected, expected - ends).clip(min=0)
    else:
        expected = frame_seconds * np.array([word.first for word in spoken[1:]], dtype=np.float64)[:, None] - delay
        costs = np.abs(ends - expected)
    costs += np.where(ends > starts, PAUSE_WORTH * (starts - ends), NO_PAUSE_COST)
    chosen = places[_cheapest_in_order(costs)].tolist()
    if delay is not None:
        return [(end, start) for end, start in chosen]
    return [
        (end, start if start > end else max(start, after.first * frame_seconds - LEAD_SECONDS))
        for (end, start), after in zip(chosen, spoken[1:], strict=True)
    ]


def _cheapest_in_order(costs: NDArray[np.float64]) -> list[int]:
    """For each row of `[rows, columns]` a column, each to the right of the one before, with the least sum."""
    if not len(costs):
        return []
    best = costs.copy()
    for before, row in pairwise(best):
        row[0] = np.inf
        row[1:] += np.minimum.accumulate(before[:-1])
    chosen = [int(best[-1].argmin())]
    for row in best[-2::-1]:
        left = row[: max(chosen[-1], 1)]
        chosen.append(len(left) - 1 - int(left[::-1].argmin()))  # of equal ones the last
    return chosen[::-1]


def _pauses(waveform: NDArray[np.float32], sampling_rate: int) -> list[tuple[float, float]]:
    """Stretches of silence, as start and end in seconds."""
    size = round(MOMENT_SECONDS * sampling_rate)
    moments = waveform[: len(waveform) // size * size].reshape(-1, size)
    levels = 10 * np.log10(np.square(moments, dtype=np.float64).mean(axis=1) + 1e-12)
    if not len(levels):
        return []
    low, high = np.percentile(levels, [5, 95])
    low = max(low, high - FLOOR_DECIBELS)
    quiet = np.concatenate([[False], levels < low + PAUSE_LEVEL * (high - low), [False]])
    edges = np.flatnonzero(np.diff(quiet.astype(np.int8))).reshape(-1, 2)
    return [
        (start * MOMENT_SECONDS, end * MOMENT_SECONDS) for start, end in edges.tolist() if end - start >= PAUSE_MOMENTS
    ]
