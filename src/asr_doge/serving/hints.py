"""The hints of a client about a recording: its language, and words to listen for.

Promises: a prompt never reaches the language model; of it, only what looks like a list of names is listened for, and
no prompt is an error, since clients also put the text before a recording into it.
"""

import re
from collections.abc import Sequence

from asr_doge.serving.errors import APIError

MOST_HOTWORDS = 200
"""For this many, the search takes about 0.2 s of one core in 30 s of audio (docs/decoding.md)."""
MOST_LETTERS = 60
MOST_WORDS_OF_A_NAME = 4
_LANGUAGE = re.compile(r"[A-Za-z][A-Za-z _-]{0,30}")


def hotwords_of(prompt: str | None, keywords: Sequence[str]) -> tuple[str, ...] | None:
    """Words to listen for; None for none.

    They are the keywords, and the parts of the prompt between commas, semicolons, full stops and line breaks, of at
    most four words; what is longer is a sentence about the recording, not a name in it. The first `MOST_HOTWORDS` are
    taken, and none of more than `MOST_LETTERS`.
    """
    parts = [
        *keywords,
        *(part for part in re.split(r"[,;.:\n]", prompt or "") if len(part.split()) <= MOST_WORDS_OF_A_NAME),
    ]
    words = dict.fromkeys(" ".join(part.split()).strip("\"'!?()[]") for part in parts)
    return tuple(word for word in words if 0 < len(word) <= MOST_LETTERS)[:MOST_HOTWORDS] or None


def check_keywords(keywords: Sequence[str]) -> None:
    """Refuse what `hotwords_of` would leave out of keywords, which a client names one by one.

    Raises:
        APIError: 400.
    """
    if len(keywords) > MOST_HOTWORDS:
        raise APIError(400, f"at most {MOST_HOTWORDS} keywords, not {len(keywords)}: keep the rarest", param="keywords")
    if any(len(word) > MOST_LETTERS for word in keywords):
        raise APIError(400, f"a keyword has at most {MOST_LETTERS} letters", param="keywords")


def language_of(languages: Sequence[str]) -> str | None:
    """The language spoken, if one was said. Of several it is not known which.

    Raises:
        APIError: 400.
    """
    for language in languages:
        if not _LANGUAGE.fullmatch(language):
            raise APIError(400, "language is a code such as en, or a name", param="language", code="invalid_language")
    return languages[0] if len(set(languages)) == 1 else None
