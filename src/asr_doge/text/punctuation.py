"""Case and punctuation of a word as a label: labels of a text's words, and a word written with its label.

Promises: the words of `labelled_words` are those of `normalize_training_text`, so that what is learned from a text fits
what a recognizer writes; `write_word` applies a label to such a word. It predicts no labels (see
`asr_doge.models.punctuation`), and writes neither numbers as figures nor hyphens.
"""

import re
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

from asr_doge.text.normalization import normalize_training_text, plain_characters

Case = Literal["lower", "capital", "upper"]
_CASES: tuple[Case, ...] = get_args(Case)


@dataclass(frozen=True)
class WrittenForm:
    """The mark after a word (`,`, `.`, `?`, `!` or nothing), and its case."""

    mark: str
    case: Case


LABELS = tuple(WrittenForm(mark, case) for mark, case in product(("", ",", ".", "?", "!"), _CASES))
"""The classes of a punctuation model, by label id."""
SENTENCE_MARKS = frozenset(".?!")
"""Marks after which a sentence begins."""
_LABEL_IDS = {form: number for number, form in enumerate(LABELS)}
_MARKS = {",": ",", ";": ",", ":": ",", ".": ".", "?": "?", "!": "!"}
_PARTS = re.compile(r"[-/_\u2010-\u2015]+")
_GAPS = re.compile(r"\.\.+|\u2026")
_TRAILING = re.compile(r"[\W_]*$")


def labelled_words(text: str) -> list[tuple[str, int]]:
    """The plain words of a text, each with the id of its label.

    Returns:
        An empty list if the text is in capitals, or if its words, taken one by one, are not those of the whole (as with
        quotation marks around several).
    """
    found: list[tuple[str, int]] = []
    for token in _GAPS.sub(r"\g<0> ", plain_characters(text)).split():
        parts = [part for part in _PARTS.split(token) if normalize_training_text(part)]
        for part in parts:
            form = WrittenForm(_mark(token) if part is parts[-1] else "", _case(part))
            found.append((normalize_training_text(part), _LABEL_IDS[form]))
    is_shouted = 2 * sum(LABELS[label].case == "upper" for _, label in found) > len(found)
    if is_shouted or [word for word, _ in found] != normalize_training_text(text).split():
        return []
    return found


def _case(word: str) -> Case:
    letters = [character for character in word if character.isalpha()]
    if not letters or not letters[0].isupper():
        return "lower"
    return "upper" if len(letters) > 1 and all(map(str.isupper, letters)) else "capital"


def _mark(token: str) -> str:
    """The first mark after the last letter; a closing quotation mark may be before or after it."""
    trailing = _TRAILING.search(token)
    return next((_MARKS[character] for character in trailing.group() if character in _MARKS), "") if trailing else ""


def write_word(word: str, form: WrittenForm) -> str:
    """A plain word as it is written."""
    if form.case == "upper":
        word = word.upper() if len(word.upper()) == len(word) else word  # straße stays
    elif form.case == "capital":
        first = next((place for place, character in enumerate(word) if character.isalpha()), 0)
        word = word[:first] + word[first : first + 1].upper() + word[first + 1 :]
    return word + form.mark
