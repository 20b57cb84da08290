"""A difference is called significant when it is, and luck when it is luck."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from asr_doge.benchmark.accuracy import SampleResult, score_sample
from asr_doge.benchmark.compare import compare_samples, matched_pairs_p_value
from asr_doge.data import Utterance

REFERENCE = "one two three four five"


def scored(hypotheses: list[str]) -> list[SampleResult]:
    samples = [Utterance(f"u{number}", Path("a.wav"), REFERENCE, REFERENCE, 1.0) for number in range(len(hypotheses))]
    return [score_sample(sample, hypothesis) for sample, hypothesis in zip(samples, hypotheses, strict=True)]


def test_the_same_transcripts_do_not_differ() -> None:
    results = scored([REFERENCE, "one", ""] * 10)
    found = compare_samples(results, results, "clean", seed=0)
    assert (found.difference, found.interval, found.p_value, found.better, found.worse) == (0, (0, 0), 1, 0, 0)


def test_a_clear_gain_is_significant_and_chance_is_not() -> None:
    wrong, right = "one two three four", REFERENCE
    first = scored([wrong] * 30 + [right] * 10)
    clear = compare_samples(first, scored([right] * 38 + [wrong] * 2), "clean", seed=0)
    assert clear.difference == pytest.approx(-28 / 200)
    assert clear.interval[0] < clear.difference < clear.interval[1] < 0
    assert clear.p_value < 0.001
    assert (clear.better, clear.worse) == (30, 2)
    chance = compare_samples(first, scored([right] * 7 + [wrong] * 28 + [right] * 5), "clean", seed=0)
    assert chance.interval[0] < 0 < chance.interval[1]
    assert chance.p_value > 0.1


def test_the_p_value_is_that_of_all_assignments() -> None:
    differences = np.array([1.0, 2.0, -1.0, 3.0, 1.0, 0.0, 0.0])
    sums = [abs(np.dot(signs, differences)) for signs in product((-1, 1), repeat=7)]
    exact = np.mean([total >= abs(differences.sum()) for total in sums])
    assert matched_pairs_p_value(differences, seed=3) == pytest.approx(exact, abs=0.02)
