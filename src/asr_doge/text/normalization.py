"""Normalize transcripts for training and for scoring.

Promises: `normalize_training_text` is the published rule; it keeps every script and accent, and changes nothing when it
is applied again. `normalize_for_scoring` applies a named rule to references and hypotheses alike. Under every rule,
typographic variants of a text (curly quotes, full-width characters, decomposed accents, soft hyphens) give the same
result. No rule needs a download or a model. It does not know which rule a benchmark uses, and converts numbers in
English only.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Literal, get_args

ScoringRule = Literal["clean", "whisper"]
"""Rules to compare transcripts by; see `normalize_for_scoring`."""
SCORING_RULES: tuple[ScoringRule, ...] = get_args(ScoringRule)

# Characters used as an apostrophe or a single quotation mark: curly, reversed, prime, acute. Unicode classifies some of
# them as letters or symbols.
_APOSTROPHES = dict.fromkeys(map(ord, "\u2018\u2019\u201b\u2032\u00b4\u02b9\u02bb\u02bc\u02bd\ua78c\u055a"), "'")
# After a low opening quotation mark, as in German, a curly one closes the quotation and is not an apostrophe.
_LOW_QUOTATION = re.compile("\u201a(.*?)[\u2018\u2019](?!\\w)")
# Characters that separate words like a hyphen or a slash, though Unicode classifies them otherwise.
_PARTING = dict.fromkeys(map(ord, "\u2212\u2043\u02d7"), "-") | dict.fromkeys(map(ord, "\u2044\u2215"), "/")
# Unicode's tags for variants of a character: full and half width, small, styled, positional.
_SAME_CHARACTER = ("<wide>", "<narrow>", "<small>", "<font>", "<initial>", "<medial>", "<final>", "<isolated>")
_LIGATURES = range(0xFB00, 0xFB18)
_INVISIBLE = ("Cf", "Cc")
# Words whose first apostrophe belongs to them and opens no quotation; the last few are Dutch.
_ELISIONS = re.compile(
    r"(twas|tis|twere|twill|twould|em|till?|cause|cuz|bout|round|neath|gainst|tween|mongst|e|er|im|is|ere|ave|ome|ello"
    r"|\d0s|n|t|s|k)"
)


def normalize_training_text(text: str) -> str:
    """The published rule: lower case, no punctuation but apostrophes, single spaces.

    Letters, accents and digits of every script are kept. Hyphens, dashes, slashes, underscores and rows of dots
    separate words; other marks are removed, so "U.S." becomes "us" and "1,000" becomes "1000". A word needs a letter or
    a digit. Apostrophes at the ends of words are removed in pairs, as quotation marks ('hello', 'hello there'), and
    kept if there is only one ('twas, dogs').

    Args:
        text: one transcript, in any Unicode form.

    Returns:
        The transcript in composed form (NFC); empty if it has no words.
    """
    text = plain_characters(text).lower()
    text = re.sub(r"\.\.+", " ", text)
    words = "".join(map(_kept, text)).split()
    spoken = [word for word in words if any(_kind(character) in "LN" for character in word)]
    # Composed again: a mark may have met its letter only now that the comma between them is gone.
    return unicodedata.normalize("NFC", " ".join(_without_quotes(spoken)))


def plain_characters(text: str) -> str:
    """Replace typographic variants of characters by the plain ones, composed (NFC).

    Apostrophes and single quotation marks of every kind become ', full-width and styled letters and digits plain ones,
    ligatures their letters; soft hyphens and other invisible characters are removed. ASCII text is unchanged.
    """
    if text.isascii():
        return text
    text = _LOW_QUOTATION.sub(r"'\1'", unicodedata.normalize("NFC", text))
    return unicodedata.normalize("NFC", "".join(map(_plain_character, text)))


def _plain_character(character: str) -> str:
    if character.isascii():
        return character
    if ord(character) in _LIGATURES or unicodedata.decomposition(character).startswith(_SAME_CHARACTER):
        character = unicodedata.normalize("NFKC", character)
    elif unicodedata.category(character) in _INVISIBLE and not character.isspace():
        return ""
    return character.translate(_APOSTROPHES).translate(_PARTING)


def _without_quotes(words: Sequence[str]) -> Iterator[str]:
    """Words without the apostrophes that quote: around one word, or before one and after a later one."""
    opened: list[int] = []  # words that may begin a quotation, one entry an apostrophe
    before, after = [0] * len(words), [0] * len(words)  # apostrophes to take away
    for index, word in enumerate(words):
        core = word.strip("'")
        opening, closing = len(word) - len(word.lstrip("'")), len(word) - len(word.rstrip("'"))
        if core == "n":  # rock 'n' roll
            opening, closing = max(opening - 1, 0), max(closing - 1, 0)
        before[index] = after[index] = both = min(opening, closing)
        for _ in range(closing - both):
            if opened:
                before[opened.pop()] += 1
                after[index] += 1
        has_own = core != "n" and _ELISIONS.fullmatch(core) is not None
        opened += [index] * (opening - both - has_own)
    for word, first, last in zip(words, before, after, strict=True):
        yield word[first : len(word) - last]


def normalize_for_scoring(text: str, language: str = "en", rule: ScoringRule = "whisper") -> str:
    """The form in which a transcript is compared.

    `clean` is the published rule, `normalize_training_text`, for every language.

    `whisper` is what published tables use. English goes through Whisper's English normalizer, as on the Open ASR
    Leaderboard: it expands contractions and titles, drops fillers and bracketed remarks, writes British spellings the
    American way and numbers as figures. It joins figures into one word: "four seven one" becomes "471", so one wrong
    digit makes the whole string wrong; for speech that is mostly digits use `clean`. Other languages go through its
    basic normalizer: lower case, no bracketed remarks, no symbols. The basic one removes vowel signs, too: for Hindi,
    Thai and other scripts that have them use `clean`, which keeps them. Both get their text through `plain_characters`,
    since they recognize apostrophes and commas in numbers only in their plain forms.

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
        return _whisper_normalizer(_is_english(language))(plain_characters(text)).strip()
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
