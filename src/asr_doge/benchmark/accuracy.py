"""Score transcripts against their references.

Promises: every utterance counts, also one with an empty reference or an empty transcript; rates of a set count errors
over all its utterances; 95 % confidence intervals come from resampling utterances with a seed, so the same transcripts
give the same numbers. Results scored under one rule (`asr_doge.text.normalization`) can be scored under another, since
the raw texts are kept.
It does not run models. Its intervals assume that utterances are independent; with few speakers they are too narrow.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import jiwer
import numpy as np
from numpy.typing import NDArray

from asr_doge.data.manifest import Utterance
from asr_doge.errors import DataError
from asr_doge.text.normalization import SCORING_RULES, ScoringRule, normalize_for_scoring
from asr_doge.text.scoring import Edits, Scores, character_edits, scores_of, word_edits

PUBLISHED_RULE: ScoringRule = "clean"
LEADERBOARD_RULE: ScoringRule = "whisper"
RULES = SCORING_RULES

DURATION_BOUNDS = (2.0, 5.0, 10.0, 15.0, 20.0, 30.0)
"""Limits in seconds between the groups of the breakdown by duration."""
RESAMPLES = 1000
_CELLS_AT_ONCE = 1_000_000
"""Resampled utterances held in memory at once."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class SampleResult:
    """One utterance, scored.

    Attributes:
        id: from the manifest.
        reference, hypothesis: the two texts normalized by the published rule.
        wer, cer: rates of this pair, as fractions.
        words, characters: the error counts of these rates.
        raw_reference, raw_hypothesis: the two texts as given.
        duration: seconds.
        audio_path: the recording.
        speaker, language: if known.
        error: the reason if there is no transcript; it is then scored as an empty one.
        incomplete: why the recording is not whole, if it is truncated or corrupt; the readable part is scored.
    """

    id: str
    reference: str
    hypothesis: str
    wer: float
    cer: float
    words: Edits
    characters: Edits
    raw_reference: str
    raw_hypothesis: str
    duration: float
    audio_path: str
    speaker: str | None = None
    language: str | None = None
    error: str | None = None
    incomplete: str | None = None


def check_readable(results: Sequence[SampleResult]) -> None:
    """Refuse to score a test set without a readable recording: that is the fault of a folder, not of each recording.

    Raises:
        DataError: not one sample can be read.
    """
    if all(result.error is not None for result in results):
        first = f"; the first: {results[0].error}" if results else ""
        raise DataError(f"none of the {len(results)} samples can be read{first}")


@dataclass(frozen=True)
class Accuracy(Scores):
    """Error rates of a set of utterances, as fractions, with their error counts and intervals.

    Attributes:
        wer_mean, cer_mean: means of the utterances' own rates (`wer` and `cer` are those of the whole set).
        substitutions, deletions, insertions: word errors.
        reference_words: words of all references.
        wer_interval, cer_interval, perfect_match_interval: 95 % confidence intervals.
    """

    wer_mean: float
    cer_mean: float
    substitutions: int
    deletions: int
    insertions: int
    reference_words: int
    wer_interval: Interval
    cer_interval: Interval
    perfect_match_interval: Interval


@dataclass(frozen=True)
class AlignedWords:
    """A stretch of a reference and the corresponding words of the hypothesis; either may be empty.

    `kind` is `equal`, `substitute`, `delete` or `insert`.
    """

    kind: str
    reference: str
    hypothesis: str


def normalized_pair(
    raw_reference: str, raw_hypothesis: str, language: str | None, rule: ScoringRule
) -> tuple[str, str]:
    """Two texts normalized by a rule; an unknown language is treated as English."""
    language = language or "en"
    return normalize_for_scoring(raw_reference, language, rule), normalize_for_scoring(raw_hypothesis, language, rule)


def score_sample(sample: Utterance, hypothesis: str, error: str | None = None) -> SampleResult:
    """Score one transcript against its utterance, under the published rule."""
    texts = normalized_pair(sample.raw_text, hypothesis, sample.language, PUBLISHED_RULE)
    words, characters = word_edits(*texts), character_edits(*texts)
    return SampleResult(
        sample.id,
        *texts,
        words.rate,
        characters.rate,
        words,
        characters,
        sample.raw_text,
        hypothesis,
        sample.duration,
        str(sample.audio_path),
        sample.speaker,
        sample.language,
        error,
    )


def accuracy_of(results: Sequence[SampleResult], seed: int, rule: ScoringRule = PUBLISHED_RULE) -> Accuracy:
    """Accuracy of a set of utterances, at least one.

    Args:
        results: utterances, scored under the published rule.
        seed: of the resampling.
        rule: another rule, under which the raw texts are scored again.
    """
    words, characters = edits_of(results, rule)
    scores = scores_of(words, characters)
    columns = [
        [edits.errors for edits in words],
        [edits.units for edits in words],
        [edits.errors for edits in characters],
        [edits.units for edits in characters],
        [float(edits.errors == 0) for edits in words],
    ]
    sums = resampled_sums(np.array(columns, dtype=np.float64).T, seed)
    return Accuracy(
        **vars(scores),
        wer_mean=fmean(edits.rate for edits in words),
        cer_mean=fmean(edits.rate for edits in characters),
        substitutions=sum(edits.substitutions for edits in words),
        deletions=sum(edits.deletions for edits in words),
        insertions=sum(edits.insertions for edits in words),
        reference_words=sum(edits.units for edits in words),
        wer_interval=interval(sums[:, 0] / np.maximum(1, sums[:, 1])),
        cer_interval=interval(sums[:, 2] / np.maximum(1, sums[:, 3])),
        perfect_match_interval=interval(sums[:, 4] / len(results)),
    )


def edits_of(results: Sequence[SampleResult], rule: ScoringRule) -> tuple[list[Edits], list[Edits]]:
    """Word and character errors of each utterance under a rule."""
    if rule == PUBLISHED_RULE:  # already scored
        return [result.words for result in results], [result.characters for result in results]
    pairs = [normalized_pair(result.raw_reference, result.raw_hypothesis, result.language, rule) for result in results]
    return [word_edits(*pair) for pair in pairs], [character_edits(*pair) for pair in pairs]


def accuracy_by(
    results: Sequence[SampleResult], group: Callable[[SampleResult], str | None], seed: int
) -> dict[str, Accuracy]:
    """Accuracy of each group of utterances, groups in the order of their first utterance; None is in no group."""
    groups: dict[str, list[SampleResult]] = {}
    for result in results:
        name = group(result)
        if name is not None:
            groups.setdefault(name, []).append(result)
    return {name: accuracy_of(members, seed) for name, members in groups.items()}


def accuracy_by_duration(results: Sequence[SampleResult], seed: int) -> dict[str, Accuracy]:
    """Accuracy of short and long utterances; groups are named `2-5 s` and the like, shortest first."""
    by_length = sorted(results, key=lambda result: result.duration)
    return accuracy_by(by_length, lambda result: _duration_group(result.duration), seed)


def worst_utterances(results: Sequence[SampleResult], count: int) -> list[SampleResult]:
    """The utterances with the most word errors, among equals those with the highest rate; never one without errors."""
    wrong = [result for result in results if result.words.errors]
    return sorted(wrong, key=lambda result: (-result.words.errors, -result.wer, result.id))[:count]


def aligned_words(reference: str, hypothesis: str) -> list[AlignedWords]:
    """Stretches of words in order, showing where a hypothesis differs from its reference."""
    reference_words, hypothesis_words = reference.split(), hypothesis.split()
    if not reference_words:  # jiwer refuses an empty reference
        return [AlignedWords("insert", "", hypothesis)] if hypothesis_words else []
    (chunks,) = jiwer.process_words(reference, hypothesis).alignments
    return [
        AlignedWords(
            chunk.type,
            " ".join(reference_words[chunk.ref_start_idx : chunk.ref_end_idx]),
            " ".join(hypothesis_words[chunk.hyp_start_idx : chunk.hyp_end_idx]),
        )
        for chunk in chunks
    ]


def resampled_sums(values: NDArray[np.float64], seed: int, resamples: int = RESAMPLES) -> NDArray[np.float64]:
    """Column sums of `resamples` sets of N rows, drawn with replacement: the bootstrap.

    Args:
        values: `[N, K]`, one row per utterance.
        seed: of the random draws.
        resamples: number of sets.

    Returns:
        `[resamples, K]`.
    """
    rng = np.random.default_rng(seed)
    count = len(values)
    at_once = max(1, _CELLS_AT_ONCE // count)
    sums = [
        values[rng.integers(count, size=(min(at_once, resamples - start), count))].sum(axis=1)
        for start in range(0, resamples, at_once)
    ]
    return np.concatenate(sums)


def interval(resampled: NDArray[np.float64]) -> Interval:
    """The middle 95 % of a resampled figure `[resamples]`."""
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(low), float(high)


def _duration_group(seconds: float) -> str:
    bounds = (0.0, *DURATION_BOUNDS)
    index = sum(seconds >= bound for bound in DURATION_BOUNDS)
    return f"{bounds[index]:g}-{bounds[index + 1]:g} s" if index + 1 < len(bounds) else f"{bounds[index]:g}+ s"
