"""What is trained on is the published form; what is scored is compared by a named rule."""

import subprocess
import sys
import unicodedata
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

from asr_doge.text import SCORING_RULES, ScoringRule, normalize_for_scoring, normalize_training_text


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


TWINS = {
    "'": "\u2018\u2019\u201b\u2032\u00b4\u02bc\u02bb\uff07",
    '"': "\u201c\u201d\u201e\u201f\uff02",
    "-": "\u2010\u2011\u2012\u2013\u2014\u2212\ufe63\uff0d",
    "/": "\u2044\u2215\uff0f",
    " ": "\u00a0\u2009\u202f\u3000",
    ",": "\uff0c\ufe50",
    ".": "\uff0e",
    "!": "\uff01",
    "(": "\uff08",
    ")": "\uff09",
    **{chr(code): chr(code + 0xFEE0) for code in [*range(0x30, 0x3A), *range(0x41, 0x5B), *range(0x61, 0x7B)]},
}
"""Characters that stand for the plain ones in other people's transcripts."""
INVISIBLE = ("\u00ad", "\u200b", "\u200d", "\u2060", "\ufeff", "\u200e")
WORDS = ["it's", "don't", "'hello'", '"yes"', "(laughs)", "1,000", "12", "3.5", "well-known", "and/or", "U.S."]
WORDS += ["Mr.", "'twas", "dogs'", "we'll", "caf\u00e9", "na\u00efve", "ok!"]
plain_texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)


@given(plain_texts, st.randoms(use_true_random=False), st.sampled_from(SCORING_RULES), st.sampled_from(["en", "de"]))
def test_a_typographic_twin_is_scored_as_its_plain_text(
    text: str, random: Random, rule: ScoringRule, language: str
) -> None:
    twin = "".join(random.choice([character, *TWINS.get(character, "")]) for character in text)
    twin = "".join(character + random.choice(["", "", *INVISIBLE]) for character in twin)
    twin = unicodedata.normalize(random.choice(["NFC", "NFD"]), twin)
    assert normalize_for_scoring(twin, language, rule) == normalize_for_scoring(text, language, rule)


@given(st.text(), st.sampled_from(SCORING_RULES), st.sampled_from(["en", "de"]))
def test_composed_and_decomposed_are_scored_alike(text: str, rule: ScoringRule, language: str) -> None:
    decomposed = unicodedata.normalize("NFD", text)
    assert normalize_for_scoring(decomposed, language, rule) == normalize_for_scoring(text, language, rule)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)) | plain_texts)
def test_plain_text_is_scored_as_published_tables_do(text: str) -> None:
    assert normalize_for_scoring(text, "en") == EnglishTextNormalizer()(text).strip()
    assert normalize_for_scoring(text, "de") == BasicTextNormalizer()(text).strip()


@pytest.mark.parametrize(
    ("quoted", "expected"),
    [
        ("\u2018hello\u2019", "hello"),
        ("'hello'", "hello"),
        ("''hello''", "hello"),
        ("she said \u2018hello there\u2019 twice", "she said hello there twice"),
        ("'one 'two' three'", "one two three"),
        ("\u201ait\u2019s so\u2018 he said", "it's so he said"),  # as German has them
        ("'Twas the dogs'", "'twas the dogs'"),  # one of each word's own
        ("\u2019twas the dogs\u2019", "'twas the dogs'"),
        ("'\u2019twas cold'", "'twas cold"),
        ("rock 'n' roll in the '90s, the boys' choice", "rock 'n' roll in the '90s the boys' choice"),
        ("'hello", "'hello"),
        ("dogs' and cats'", "dogs' and cats'"),
        ("o'clock y'all's", "o'clock y'all's"),
    ],
)
def test_apostrophes_at_the_ends_of_words_go_in_pairs(quoted: str, expected: str) -> None:
    assert normalize_training_text(quoted) == expected


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("\ufb01ne \ufb02ag", "fine flag"),  # ligatures
        ("\U0001d41a\U0001d7d0", "a2"),  # styled: bold a, double-struck 2
        ("\ufeb3\ufefc\ufee1", "\u0633\u0644\u0627\u0645"),  # Arabic by its positional forms
        ("\uff76\uff9e", "\u30ac"),  # half-width ka with its voice mark
        ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u062e"),  # a zero-width non-joiner
    ],
)
def test_forms_of_one_letter_are_one(written: str, plain: str) -> None:
    for rule in SCORING_RULES:
        assert normalize_for_scoring(written, "fa", rule) == plain


def test_importing_the_room_loads_no_transformers() -> None:
    code = "import sys, asr_doge.text; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
