"""Word times: the words of a text on the frames of the CTC head.

Promises: the best of all ways to spell the text over the frames (Viterbi), for any text: letters that the head cannot
write take no frame, and a text too long for its clip is spread evenly. Where somebody pauses between two words, they
begin and end at the pause. Words keep their order and do not overlap.
It does not know where the text came from; it need not be the CTC head's own.

A CTC head says that a letter was heard, not when: a frame or two somewhere about it, and a word's first letter often as
soon as the word before is over. So letters say between which moments a boundary lies, and loudness says where.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from asr_doge.decoding.ctc import BLANK, letter_scores
from asr_doge.models.encoders import SpeechEncoder

LEAD_SECONDS, TAIL_SECONDS = 0.06, 0.08
"""Where nobody pauses, at most so much before its first letter a word begins, and so much after its last it ends."""
MOMENT_SECONDS = 0.01
EDGE_SECONDS = 0.03
"""A silence so near to an end of the clip reaches it."""
PAUSE_MOMENTS = 4
"""A shorter silence is within a word, before a plosive say."""
PAUSE_LEVEL, FLOOR_DECIBELS = 0.1, 50.0
"""A moment is silent up to this share of the way, in decibels, from the clip's quiet to its loud moments, of which the
quiet ones count as at most so far below the loud."""


UNHEARD = -20.0
"""Log-posterior of the words of a text that does not fit on its clip."""


@dataclass(frozen=True)
class AlignedWord:
    """A word's place, in seconds, and the mean log-posterior of its letters (None if the head can write none)."""

    start: float
    end: float
    log_posterior: float | None


@dataclass(frozen=True)
class _Letters:
    """The frames at which a word's first, second and last letter are marked, and their mean log-posterior."""

    first: int
    second: int
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
        encoder: whose head it is; it knows how text becomes ids.
        log_posteriors: `[T, V]`, natural logarithms, T at least 1.
        words: of the text, in order.
        waveform: `[samples]`, the clip.
        sampling_rate: in Hz.
    """
    seconds = len(waveform) / sampling_rate
    emissions, owner = _emissions(encoder, log_posteriors, words)
    path = _best_path(emissions, log_posteriors[:, BLANK])
    if path is None:
        edges = np.linspace(0, seconds, len(words) + 1).tolist()
        return [AlignedWord(start, end, UNHEARD) for start, end in pairwise(edges)]
    marked = [_marks(path, np.flatnonzero(owner == number), emissions) for number in range(len(words))]
    return _place(marked, 1 / encoder.ctc_frame_rate_hz, seconds, _pauses(waveform, sampling_rate))


def _emissions(
    encoder: SpeechEncoder, log_posteriors: NDArray[np.float32], words: Sequence[str]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Log-posteriors `[T, S]` of each letter of the text, and the number `[S]` of the word it belongs to.

    Between words stands a space, of word -1, which may as well be a blank.
    """
    between = log_posteriors[:, [BLANK, *encoder.ctc_ids(" ")]].max(axis=1, keepdims=True)
    columns, owner = [log_posteriors[:, :0]], np.zeros(0, dtype=np.int64)
    for number, word in enumerate(words):
        letters = letter_scores(encoder, log_posteriors, word)
        if letters.shape[1]:
            gap = [between] if len(owner) else []
            columns += [*gap, letters]
            owner = np.concatenate([owner, [-1] * len(gap), [number] * letters.shape[1]])
    return np.concatenate(columns, axis=1), owner.astype(np.int64)


def _best_path(emissions: NDArray[np.float32], blank: NDArray[np.float32]) -> NDArray[np.int64] | None:
    """The letter `[T]` that each frame shows on the best path, -1 for blank; None if the text does not fit.

    States alternate: blank, letter, blank, letter, …, blank. A blank between two letters may be left out unless they
    are the same.
    """
    frames, letters = emissions.shape
    if letters == 0:
        return np.full(frames, -1)
    states = 2 * letters + 1
    scores = np.repeat(blank[:, None], states, axis=1)
    scores[:, 1::2] = emissions
    may_skip = np.zeros(states, dtype=bool)
    may_skip[3::2] = (emissions[:, 1:] != emissions[:, :-1]).any(axis=0)
    best = np.full(states, -np.inf)
    best[:2] = scores[0, :2]
    came_from = np.zeros((frames, states), dtype=np.int8)
    for frame in range(1, frames):
        stepped = np.concatenate([[-np.inf], best[:-1]])
        skipped = np.where(may_skip, np.concatenate([[-np.inf, -np.inf], best[:-2]]), -np.inf)
        options = np.stack([best, stepped, skipped])
        came_from[frame] = options.argmax(axis=0)
        best = options.max(axis=0) + scores[frame]
    state = int(states - 1 if best[-1] >= best[-2] else states - 2)
    if not np.isfinite(best[state]):
        return None
    path = np.empty(frames, dtype=np.int64)
    for frame in range(frames - 1, -1, -1):
        path[frame] = state // 2 if state % 2 else -1
        state -= int(came_from[frame, state])
    return path


def _marks(path: NDArray[np.int64], letters: NDArray[np.int64], emissions: NDArray[np.float32]) -> _Letters | None:
    """Where the letters of a word lie on the path; None for a word without any."""
    if not len(letters):
        return None
    frames = [np.flatnonzero(path == letter) for letter in letters]
    best = [emissions[where, letter].max() for letter, where in zip(letters, frames, strict=True)]
    second = frames[min(1, len(frames) - 1)][0]
    return _Letters(int(frames[0][0]), int(second), int(frames[-1][-1]), float(np.mean(best)))


def _place(
    marked: Sequence[_Letters | None], frame_seconds: float, seconds: float, pauses: Sequence[tuple[float, float]]
) -> list[AlignedWord]:
    """Start and end of each word, in a clip of `seconds`.

    A word without letters stands, with no length, where the one before it ends.
    """
    aligned: list[AlignedWord] = []
    spoken = [letters for letters in marked if letters is not None]
    boundaries = [
        _boundary(before, after, frame_seconds, seconds, pauses) for before, after in pairwise([None, *spoken, None])
    ]
    starts, ends = iter(after for _, after in boundaries), iter(before for before, _ in boundaries[1:])
    for letters in marked:
        end = aligned[-1].end if aligned else 0.0
        if letters is None:
            aligned.append(AlignedWord(end, end, None))
        else:
            start = max(end, next(starts))
            aligned.append(AlignedWord(start, max(start, next(ends)), letters.log_posterior))
    return aligned


def _boundary(
    before: _Letters | None,
    after: _Letters | None,
    frame_seconds: float,
    seconds: float,
    pauses: Sequence[tuple[float, float]],
) -> tuple[float, float]:
    """End of one word and start of the next: the longest pause between them, or about where their letters are."""
    earliest = before.last * frame_seconds if before else 0.0
    latest = (after.second + 1) * frame_seconds if after else seconds
    if (
        before is None
    ):  # a letter may be marked as late as after the word, so that only silence from the start is before
        between = [(start, end) for start, end in pauses if start < EDGE_SECONDS]
    elif after is None:
        between = [(start, end) for start, end in pauses if end > seconds - EDGE_SECONDS]
    else:
        between = [(start, end) for start, end in pauses if start < latest and end > earliest]
    if between:
        return max(between, key=lambda pause: pause[1] - pause[0])
    end = min(earliest + frame_seconds + TAIL_SECONDS, seconds) if before else 0.0
    start = max(after.first * frame_seconds - LEAD_SECONDS, 0.0) if after else seconds
    if before and after and start < end:
        start = end = min(max((start + end) / 2, earliest), latest)
    return end, start


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
