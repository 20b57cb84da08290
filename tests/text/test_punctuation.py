"""Words and how they are written, by hand; and that nothing but the writing changes, for any text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr_doge.text.normalization import normalize_training_text
from asr_doge.text.punctuation import LABELS, WrittenForm, labelled_words, write_word


def _rewritten(text: str) -> str:
    return " ".join(write_word(word, LABELS[label]) for word, label in labelled_words(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It was 5 o'clock.", "It was 5 o'clock."),
        ("\u201cIt was,\u201d said Mr. Burchell; \u201cat last!\u201d", "It was, said Mr. Burchell, at last!"),
        ('"Do you mean the prisoner?" inquired the Judge.', "Do you mean the prisoner? inquired the Judge."),
        ("He said well-known things: NASA went on", "He said well known things, NASA went on"),
        ("no marks here", "no marks here"),
        ("Wait...what is it? No\u2026 Yes.", "Wait. what is it? No Yes."),
        ("'Twas I\u2014and McDonald.", "'Twas I and McDonald."),
    ],
)
def test_what_is_learned_from_a_text(text: str, expected: str) -> None:
    assert _rewritten(text).lower() == expected.lower()
    assert _rewritten(text) == expected.replace("McDonald", "Mcdonald")


@pytest.mark.parametrize("text", ["THE END OF IT ALL", "", "...", "'hello there' he said"])
def test_a_text_that_teaches_nothing_is_left_out(text: str) -> None:
    assert labelled_words(text) == []


@given(st.text(alphabet=st.sampled_from("aBc'-.,?!;: _\u2019\u2014\u2026\u2e3a\u00e95"), max_size=40))
def test_words_are_those_of_the_published_rule(text: str) -> None:
    words = [word for word, _ in labelled_words(text)]
    assert not words or words == normalize_training_text(text).split()
    assert normalize_training_text(_rewritten(text)) == " ".join(words)


@pytest.mark.parametrize(
    ("word", "form", "expected"),
    [
        ("o'clock", WrittenForm(".", "capital"), "O'clock."),
        ("'tis", WrittenForm("", "capital"), "'Tis"),
        ("nasa", WrittenForm("?", "upper"), "NASA?"),
        ("5", WrittenForm("!", "capital"), "5!"),
        ("", WrittenForm(",", "capital"), ","),
        ("stra\u00dfe", WrittenForm("", "upper"), "stra\u00dfe"),
    ],
)
def test_a_word_as_it_is_written(word: str, form: WrittenForm, expected: str) -> None:
    assert write_word(word, form) == expected
