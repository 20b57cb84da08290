"""Error rates are jiwer's over the whole corpus, and every pair counts."""

from statistics import pstdev

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr_doge.text.scoring import character_edits, score, word_edits

REFERENCES = ["the cat sat", "one two three four", "it's nine o'clock", "go"]
HYPOTHESES = ["the cat sat", "one too three four five", "", "gone"]
texts = st.lists(st.sampled_from(["one", "two", "three", "o'clock", "é"]), max_size=6).map(" ".join)


def test_rates_of_a_corpus_are_jiwers() -> None:
    scores = score(REFERENCES, HYPOTHESES)
    assert scores.wer == pytest.approx(jiwer.wer(REFERENCES, HYPOTHESES))
    assert scores.cer == pytest.approx(jiwer.cer(REFERENCES, HYPOTHESES))
    assert scores.wer == pytest.approx((0 + 2 + 3 + 1) / 11)
    assert scores.perfect_match_rate == 0.25
    assert scores.num_samples == 4


def test_spread_is_over_the_utterances_own_rates() -> None:
    scores = score(REFERENCES, HYPOTHESES)
    assert scores.wer_std == pytest.approx(pstdev([0, 2 / 4, 1, 1]))
    assert scores.cer_std == pytest.approx(pstdev([jiwer.cer(*p) for p in zip(REFERENCES, HYPOTHESES, strict=True)]))
    assert score(["one two"], ["one"]).wer_std == 0.0


@pytest.mark.parametrize(
    ("reference", "hypothesis", "wer", "cer"),
    [
        ("", "", 0.0, 0.0),
        ("one two", "", 1.0, 1.0),
        ("", "one two", 2.0, 7.0),  # insertions over one, or silence that is written over would cost nothing
        ("one", "one two three", 2.0, 10 / 3),
        ("abcd", "abxd", 1.0, 0.25),
    ],
)
def test_empty_and_longer_texts(reference: str, hypothesis: str, wer: float, cer: float) -> None:
    assert word_edits(reference, hypothesis).rate == pytest.approx(wer)
    assert character_edits(reference, hypothesis).rate == pytest.approx(cer)


def test_an_invented_text_counts_in_the_corpus() -> None:
    scores = score(["one two three four", ""], ["one two three four", "five six"])
    assert scores.wer == pytest.approx(2 / 4)
    assert scores.perfect_match_rate == 0.5
    assert score(["", ""], ["", ""]).wer == 0.0


@given(texts)
def test_identical_is_perfect(text: str) -> None:
    scores = score([text, text], [text, text])
    assert (scores.wer, scores.cer, scores.wer_std, scores.cer_std, scores.perfect_match_rate) == (0, 0, 0, 0, 1)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5))
def test_rates_fit_together(pairs: list[tuple[str, str]]) -> None:
    references, hypotheses = zip(*pairs, strict=True)
    scores = score(references, hypotheses)
    assert min(scores.wer, scores.cer, scores.wer_std, scores.cer_std) >= 0
    assert 0 <= scores.perfect_match_rate <= 1
    assert (scores.wer == 0) == (scores.perfect_match_rate == 1)
    assert scores.num_samples == len(pairs)
    if len(pairs) == 1:
        assert scores.wer == word_edits(*pairs[0]).rate
        assert scores.cer == character_edits(*pairs[0]).rate
    if all(references):
        assert scores.wer == pytest.approx(jiwer.wer(list(references), list(hypotheses)))


@pytest.mark.parametrize(("references", "hypotheses"), [([], []), (["one"], []), (["one"], ["one", "two"])])
def test_unpaired_texts_cannot_be_scored(references: list[str], hypotheses: list[str]) -> None:
    with pytest.raises(ValueError, match="cannot score"):
        score(references, hypotheses)
