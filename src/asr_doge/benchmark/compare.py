"""Compare two benchmarks of the same recordings: is one better, or is the difference chance?

Promises: only utterances that both have are compared, and the others are counted; both sides are scored again from
their raw texts, under each rule. The interval resamples utterances, each with its two transcripts; the p-value is of
the matched-pairs randomization test: how often would a difference this large arise if the two transcripts of each
utterance were assigned at random? Both use a seed.
It assumes that utterances are independent, and ignores speed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asr_doge.benchmark.accuracy import RULES, Interval, SampleResult, edits_of, interval, resampled_sums
from asr_doge.benchmark.results import BenchmarkResult
from asr_doge.errors import DataError
from asr_doge.text.normalization import ScoringRule

PERMUTATIONS = 10_000
RESAMPLES = 10_000
_PERMUTATIONS_AT_ONCE = 100


@dataclass(frozen=True)
class RuleComparison:
    """Two sets of transcripts under one rule, rates as fractions.

    Attributes:
        wer_first, wer_second: over the utterances that both have.
        difference: second minus first; negative means fewer errors.
        interval: 95 % confidence interval of the difference.
        p_value: of the difference, two-sided.
        better, worse: number of utterances in which the second has fewer or more errors than the first.
    """

    wer_first: float
    wer_second: float
    difference: float
    interval: Interval
    p_value: float
    better: int
    worse: int


@dataclass(frozen=True)
class Comparison:
    """Two benchmarks compared.

    Attributes:
        num_common: number of utterances that both have.
        num_left_out: number of utterances that only one of them has.
        by_rule: the comparison under each rule.
    """

    num_common: int
    num_left_out: int
    by_rule: dict[str, RuleComparison]


def compare(first: BenchmarkResult, second: BenchmarkResult, seed: int = 0) -> Comparison:
    """Compare two results.

    Raises:
        DataError: they share no utterance, or an utterance's reference differs between them.
    """
    seconds = {sample.id: sample for sample in second.samples}
    pairs = [(sample, seconds[sample.id]) for sample in first.samples if sample.id in seconds]
    if not pairs:
        raise DataError(f"{first.report_path} and {second.report_path} share no utterance: compare the same test set")
    for ours, theirs in pairs:
        if ours.raw_reference != theirs.raw_reference:
            raise DataError(
                f"utterance '{ours.id}' has another reference in {second.report_path} than in {first.report_path}:"
                " measure both with the same manifest"
            )
    ones, others = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return Comparison(
        num_common=len(pairs),
        num_left_out=len(first.samples) + len(second.samples) - 2 * len(pairs),
        by_rule={rule: compare_samples(ones, others, rule, seed) for rule in RULES},
    )


def compare_samples(
    first: Sequence[SampleResult], second: Sequence[SampleResult], rule: ScoringRule, seed: int
) -> RuleComparison:
    """Compare two transcripts of the same utterances."""
    edits_first, edits_second = edits_of(first, rule)[0], edits_of(second, rule)[0]
    errors_first = np.array([edits.errors for edits in edits_first], dtype=np.float64)
    errors_second = np.array([edits.errors for edits in edits_second], dtype=np.float64)
    words = np.array([edits.units for edits in edits_first], dtype=np.float64)
    differences = errors_second - errors_first
    total = max(1.0, words.sum())
    sums = resampled_sums(np.stack([differences, words], axis=1), seed, RESAMPLES)
    return RuleComparison(
        wer_first=float(errors_first.sum() / total),
        wer_second=float(errors_second.sum() / total),
        difference=float(differences.sum() / total),
        interval=interval(sums[:, 0] / np.maximum(1, sums[:, 1])),
        p_value=matched_pairs_p_value(differences, seed),
        better=int((differences < 0).sum()),
        worse=int((differences > 0).sum()),
    )


def matched_pairs_p_value(differences: NDArray[np.float64], seed: int) -> float:
    """Share of random signs for which the sum of `differences` `[N]` is at least as far from 0 as it is."""
    differing = differences[differences != 0]  # the sign of zeros has no effect
    observed = abs(differing.sum())
    rng = np.random.default_rng(seed)
    as_large = 0
    for _ in range(PERMUTATIONS // _PERMUTATIONS_AT_ONCE):
        signs = rng.choice([-1.0, 1.0], size=(_PERMUTATIONS_AT_ONCE, len(differing)))
        as_large += int((np.abs(signs @ differing) >= observed).sum())
    return (as_large + 1) / (PERMUTATIONS + 1)  # the observed assignment is one of the possibilities
