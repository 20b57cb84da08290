"""What is trained on is the published form; what is scored is compared by a named rule."""

import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asr_doge.text import SCORING_RULES, normalize_for_scoring, normalize_training_text


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("Hello, World!", "hello world"),
        ("DON\u2019T stop; it\u02bcs 'twas the dogs'", "don't stop it's 'twas the dogs'"),
        ("well-known \u2014 state\u2013of\u2011the-art", "well known state of the art"),
        ("wait...what\u2026now and/or snake_case", "wait what now and or snake case"),
        ("The U.S. paid $1,000.", "the us paid 1000"),
        ("  tabs\tand\nlines\u00a0 ", "tabs and lines"),
        ("Caf\u00e9 Cafe\u0301 \u00dcBER", "caf\u00e9 caf\u00e9 \u00fcber"),
        (
            "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!",
            "\u043f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440",
        ),
        ("\u0928\u092e\u0938\u094d\u0924\u0947\u0964", "\u0928\u092e\u0938\u094d\u0924\u0947"),  # vowel signs are marks
        ("\u4f60\u597d\uff0c\u4e16\u754c", "\u4f60\u597d\u4e16\u754c"),
        ("\u201cquoted\u201d (aside) \u2764\ufe0f ' - !", "quoted aside"),
        ("?!", ""),
    ],
)
def test_training_text_is_the_published_form(raw: str, expected: str) -> None:
    assert normalize_training_text(raw) == expected


@given(st.text())
@example("e,\u0301")
@example("\u0130\u0301")
@example("\u03a3-\u03a3A\u03a3")
def test_training_text_is_stable_and_single_spaced(text: str) -> None:
    once = normalize_training_text(text)
    assert normalize_training_text(once) == once
    assert once == " ".join(once.split())
    assert once == once.lower()


@pytest.mark.parametrize("language", ["en", "en-GB", "en_US", "eng", "English"])
def test_scoring_forgives_what_the_leaderboard_forgives(language: str) -> None:
    assert normalize_for_scoring("Um, Mr. Brown won't pay [laughs] $20 for colour", language) == normalize_for_scoring(
        "mister brown will not pay twenty dollars for color", language
    )


def test_other_languages_go_through_the_basic_normalizer() -> None:
    assert normalize_for_scoring("Une maison (rires), à 20 %!", "fr") == "une maison à 20"
    assert (
        normalize_for_scoring("\u041f\u0440\u0438\u0432\u0435\u0442!", "ru") == "\u043f\u0440\u0438\u0432\u0435\u0442"
    )
    assert normalize_for_scoring("um we won't", "de") == "um we won t"


def test_scoring_rules_differ_on_digit_strings_and_on_vowel_signs() -> None:
    spoken = "Four, seven one!"
    assert normalize_for_scoring(spoken, rule="whisper") == "471"
    assert normalize_for_scoring(spoken, rule="clean") == "four seven one"
    namaste = "\u0928\u092e\u0938\u094d\u0924\u0947"
    assert normalize_for_scoring(namaste, "hi", "clean") == namaste
    assert SCORING_RULES == ("clean", "whisper")
    with pytest.raises(ValueError, match="no scoring rule 'clear': choose from clean, whisper"):
        normalize_for_scoring(spoken, "en", "clear")  # type: ignore[arg-type]


def test_importing_the_room_loads_no_transformers() -> None:
    code = "import sys, asr_doge.text; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
