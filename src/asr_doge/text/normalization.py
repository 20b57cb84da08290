"""Bring transcripts to the form that is trained on, and to the forms in which they are compared.

Promises: `normalize_training_text` is the published rule, keeps every script and accent, and changes nothing the second
time. `SCORING_RULES` names the ways to compare a transcript with its reference; each is applied to both. No rule needs
a download. It does not know which rule a benchmark prefers, and it reads no language but English out of numbers.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

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


def normalize_for_scoring(text: str) -> str:
    """Whisper's English normalizer, which the Open ASR Leaderboard applies to references and to results.

    It expands contractions and titles, drops fillers and bracketed remarks, and writes numbers as figures. Of figures
    it makes one word: "four seven one" becomes "471", so one wrong digit makes the whole string wrong. For speech that
    is mostly digits use the rule "clean" instead.

    One part is left out: the leaderboard's list of 1,700 British spellings, which is to be had only by download. Where
    one side writes "colour" and the other "color", this rule counts an error that the leaderboard forgives.

    Args:
        text: one transcript, in English.
    """
    return _whisper_normalizer()(text).strip()


SCORING_RULES: dict[str, Callable[[str], str]] = {
    "clean": normalize_training_text,
    "whisper_english": normalize_for_scoring,
}
"""Rules to compare transcripts by: `clean`, the published one, and `whisper_english`, the Open ASR Leaderboard's."""


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


@lru_cache(maxsize=1)
def _whisper_normalizer() -> Callable[[str], str]:
    # Imported here: transformers takes a second to import, and the training rule does not need it.
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    return EnglishTextNormalizer({})
