"""Groups, intervals and alignments are what a reader takes them for."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr_doge.benchmark.accuracy import (
    SampleResult,
    accuracy_by,
    accuracy_by_duration,
    accuracy_of,
    aligned_words,
    score_sample,
    worst_utterances,
)
from asr_doge.data import Utterance

words = st.lists(st.sampled_from(["one", "two", "three"]), max_size=6).map(" ".join)


def scored(reference: str, hypothesis: str, name: str = "a", seconds: float = 1.0) -> SampleResult:
    return score_sample(Utterance(name, Path("a.wav"), reference, reference, seconds, language="en"), hypothesis)


def test_each_kind_of_error_is_counted() -> None:
    results = [
        scored("one two three", "one too three four"),
        scored("", "five"),
        scored("six seven", ""),
        scored("a", "a"),
    ]
    accuracy = accuracy_of(results, seed=0)
    assert (accuracy.substitutions, accuracy.deletions, accuracy.insertions) == (1, 2, 2)
    assert accuracy.reference_words == 6
    assert accuracy.wer == pytest.approx(5 / 6)
    assert accuracy.wer_mean == pytest.approx((2 / 3 + 1 + 1 + 0) / 4)
    assert accuracy.num_samples == 4


def test_the_leaderboards_rule_counts_what_it_empties() -> None:
    results = [scored("um", "um"), scored("Mr. Brown's 2 dogs", "mister brown's two dogs"), scored("uh", "seven")]
    published, leaderboard = accuracy_of(results, 0), accuracy_of(results, 0, "whisper")
    assert published.num_samples == leaderboard.num_samples == 3
    assert published.wer > leaderboard.wer
    assert (leaderboard.insertions, leaderboard.reference_words) == (1, 5)  # fillers are no words, inventions are


def test_intervals_hold_the_rate_and_narrow_with_more_samples() -> None:
    results = [
        scored("one two three four", "one two" if number % 4 == 0 else "one two three four") for number in range(40)
    ]
    few, many = accuracy_of(results, seed=1), accuracy_of(results * 25, seed=1)
    for accuracy in (few, many):
        low, high = accuracy.wer_interval
        assert low < accuracy.wer < high
    width = few.wer_interval[1] - few.wer_interval[0]
    assert many.wer_interval[1] - many.wer_interval[0] == pytest.approx(width / 5, rel=0.25)
    # Of 40 with a quarter at 0.5: the textbook's interval.
    assert width == pytest.approx(2 * 1.96 * 0.5 * np.sqrt(0.25 * 0.75 / 40), rel=0.15)
    assert accuracy_of(results, seed=1) == few


def test_groups_go_by_length_and_language() -> None:
    results = [scored("one", "", seconds=seconds) for seconds in (31.0, 1.9, 2.0, 30.0, 12.0)]
    groups = accuracy_by_duration(results, seed=0)
    assert {name: group.num_samples for name, group in groups.items()} == {
        "0-2 s": 1,
        "2-5 s": 1,
        "10-15 s": 1,
        "30+ s": 2,
    }
    assert list(groups) == ["0-2 s", "2-5 s", "10-15 s", "30+ s"]
    results[0] = replace(results[0], language="de")
    results[1] = replace(results[1], language=None)
    groups = accuracy_by(results, lambda result: result.language, seed=0)
    assert {name: group.num_samples for name, group in groups.items()} == {"de": 1, "en": 3}


def test_the_worst_have_the_most_errors() -> None:
    results = [
        scored("one two three four", "one", "long"),
        scored("one", "two", "short"),
        scored("one two", "two", "half"),
        scored("one", "one", "right"),
    ]
    assert [result.id for result in worst_utterances(results, 10)] == ["long", "short", "half"]
    assert [result.id for result in worst_utterances(results, 1)] == ["long"]


@given(words, words)
def test_an_alignment_is_both_texts(reference: str, hypothesis: str) -> None:
    parts = aligned_words(reference, hypothesis)
    assert " ".join(part.reference for part in parts if part.reference) == reference
    assert " ".join(part.hypothesis for part in parts if part.hypothesis) == hypothesis
    assert all((part.reference == part.hypothesis) == (part.kind == "equal") for part in parts)
