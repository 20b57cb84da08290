"""What clients say of a recording beforehand: its language, and words to listen for.

Promises: a prompt never reaches the language model; of it, only what looks like a list of names is listened for.
"""

import re
from collections.abc import Sequence

from asr_doge.serving.errors import APIError

MOST_HOTWORDS = 50
"""Each takes about 20 ms for every 10 s of audio."""
MOST_LETTERS = 60
MOST_WORDS_OF_A_NAME = 4
_LANGUAGE = re.compile(r"[A-Za-z][A-Za-z _-]{0,30}")


def hotwords_of(prompt: str | None, keywords: Sequence[str]) -> tuple[str, ...] | None:
    """Words to listen for; None for none.

    They are the keywords, and the parts of the prompt between commas, semicolons, full stops and line breaks, of at
    most four words; what is longer is a sentence about the recording, not a name in it.
    """
    parts = [
        *keywords,
        *(part for part in re.split(r"[,;.:\n]", prompt or "") if len(part.split()) <= MOST_WORDS_OF_A_NAME),
    ]
    words = dict.fromkeys(" ".join(part.split()).strip("\"'!?()[]") for part in parts)
    words.pop("", None)
    return tuple(words) or None


def check_hotwords(hotwords: Sequence[str] | None) -> None:
    """Refuse more than can be listened for in time.

    Raises:
        APIError: 400.
    """
    if hotwords is None:
        return
    if len(hotwords) > MOST_HOTWORDS:
        raise APIError(400, f"at most {MOST_HOTWORDS} keywords, not {len(hotwords)}: keep the rarest", param="keywords")
    if any(len(word) > MOST_LETTERS for word in hotwords):
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
