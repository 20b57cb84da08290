"""Bring transcripts to the form that is trained on, and to the forms in which they are compared.

Promises: `normalize_training_text` is the published rule, keeps every script and accent, and changes nothing the second
time. `normalize_for_scoring` applies a named rule, to references and to results alike. No rule needs a download or a
model. It does not know which rule a benchmark prefers, and it reads no language but English out of numbers.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import Literal, get_args

ScoringRule = Literal["clean", "whisper"]
"""Rules to compare transcripts by; see `normalize_for_scoring`."""
SCORING_RULES: tuple[ScoringRule, ...] = get_args(ScoringRule)

# The typographic apostrophe, the modifier letter (a letter to Unicode) and the full-width one.
_APOSTROPHES = str.maketrans({"\u2019": "'", "\u02bc": "'", "\uff07": "'"})


def normalize_training_text(text: str) -> str:
    """The published rule: lower case, no punctuation but apostrophes, single spaces.

    Letters, accents and digits of every script stay. Hyphens, dashes, slashes, underscores and dots in a row part
    words; other marks vanish, so that "U.S." becomes "us" and "1,000" becomes "1000". What holds neither letter nor
    digit is no word.

    Args:
        text: one transcript, in any Unicode form.

    Returns:
        The transcript in composed form (NFC); empty if there is nothing to say.
    """
    text = unicodedata.normalize("NFC", text).lower().translate(_APOSTROPHES)
    text = re.sub(r"\.\.+", " ", text)
    words = "".join(map(_kept, text)).split()
    spoken = (word for word in words if any(_kind(character) in "LN" for character in word))
    # Composed again: a mark may have met its letter only now that the comma between them is gone.
    return unicodedata.normalize("NFC", " ".join(spoken))


def normalize_for_scoring(text: str, language: str = "en", rule: ScoringRule = "whisper") -> str:
    """The form in which a transcript is compared.

    `clean` is the published rule, `normalize_training_text`, for every language.

    `whisper` is what published tables use. English goes through Whisper's English normalizer, as on the Open ASR
    Leaderboard: it expands contractions and titles, drops fillers and bracketed remarks, writes British spellings the
    American way and numbers as figures. Of figures it makes one word: "four seven one" becomes "471", so one wrong
    digit makes the whole string wrong; for speech that is mostly digits use `clean`. Other languages go through its
    basic normalizer: lower case, no bracketed remarks, no symbols. That one takes vowel signs for symbols: for Hindi,
    Thai and other scripts that have them use `clean`, which keeps them.

    Args:
        text: one transcript.
        language: its language, as a code such as `en` or `en-GB`, or as `english`; `whisper` alone looks at it.
        rule: one of `SCORING_RULES`.

    Raises:
        ValueError: no rule of that name.
    """
    if rule == "clean":
        return normalize_training_text(text)
    if rule == "whisper":
        return _whisper_normalizer(_is_english(language))(text).strip()
    raise ValueError(f"no scoring rule {rule!r}: choose from {', '.join(SCORING_RULES)}")


def _is_english(language: str) -> bool:
    """Whether a language code or name (`en`, `eng`, `en-GB`, `en_US`, `English`) means English."""
    return re.split("[-_]", language.lower())[0] in ("en", "eng", "english")


def _kind(character: str) -> str:
    """First letter of the Unicode category: L letter, M mark, N number, P punctuation, S symbol, Z space, C control."""
    return unicodedata.category(character)[0]


def _kept(character: str) -> str:
    """The character itself, a space in its place, or nothing."""
    if character == "'" or _kind(character) in "LMN":
        return character
    # Pd: hyphens and dashes; Pc: the underscore and its kind.
    if character.isspace() or character in "/\u2026" or unicodedata.category(character) in ("Pd", "Pc"):
        return " "
    return ""


@lru_cache(maxsize=2)
def _whisper_normalizer(english: bool) -> Callable[[str], str]:
    # Imported here: the training rule does not need it. This package carries the list of British spellings that
    # transformers' copy of the same code wants as an argument.
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    normalizer: Callable[[str], str] = EnglishTextNormalizer() if english else BasicTextNormalizer()
    return normalizer
