"""The labels of a CTC head: characters or subwords (BPE), both listed in full in a model's configuration.

Promises: id 0 is the blank; a text's ids give the text back, without characters that the vocabulary lacks.
It does not know the head, nor how texts are normalized.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from asr_doge.choices import CTCUnits

WORD_START = "▁"
"""The character with which the first subword of a word begins."""
LEAST_OCCURRENCES = 5
"""A character with fewer occurrences in the texts is not included."""


class CTCVocabulary:
    """The labels of a head, and how a text is split into them.

    Args:
        tokens: in the order of their ids, which start at 1.
        merges: of BPE, in the order in which they are applied; none for characters.
    """

    def __init__(self, tokens: Sequence[str], merges: Sequence[Sequence[str]] = ()) -> None:
        self.tokens = tuple(tokens)
        self.merges = tuple((first, second) for first, second in merges)
        self._ids = {token: number for number, token in enumerate(self.tokens, start=1)}
        self._bpe: Tokenizer | None = None
        if self.merges:
            self._bpe = Tokenizer(models.BPE(self._ids, list(self.merges)))
            self._bpe.pre_tokenizer = _pieces()

    def __len__(self) -> int:
        """Number of labels, including the blank."""
        return 1 + len(self.tokens)

    @property
    def units(self) -> CTCUnits:
        """The kind of the labels."""
        return "bpe" if self.merges else "characters"

    def ids(self, text: str) -> list[int]:
        """Ids of a text."""
        if self._bpe is not None:
            found: list[int] = self._bpe.encode(text).ids if text.strip() else []
            return found
        return [self._ids[character] for character in text if character in self._ids]

    def text(self, ids: Iterable[int]) -> str:
        """The text of ids other than the blank."""
        spelled = "".join(self.tokens[number - 1] for number in ids)
        return spelled.replace(WORD_START, " ") if self._bpe is not None else spelled

    @classmethod
    def of_characters(cls, texts: Iterable[str]) -> "CTCVocabulary":
        """The characters of some texts, except rare ones (`LEAST_OCCURRENCES`)."""
        counts = Counter(character for text in texts for character in text)
        return cls(sorted(character for character, count in counts.items() if count >= LEAST_OCCURRENCES))

    @classmethod
    def of_pieces(cls, texts: Sequence[str], size: int) -> "CTCVocabulary":
        """At most `size` subwords, learned from some texts by BPE."""
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = _pieces()
        counts = Counter(character for text in texts for character in text)
        rare = sum(count < LEAST_OCCURRENCES for count in counts.values())
        trainer = trainers.BpeTrainer(vocab_size=size, limit_alphabet=max(1, len(counts) - rare), show_progress=False)
        bpe.train_from_iterator(texts, trainer)
        vocabulary = bpe.get_vocab()
        tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
        return cls(tokens, _merges(bpe))


def _pieces() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Metaspace(WORD_START, prepend_scheme="always")


def _merges(bpe: Tokenizer) -> list[tuple[str, str]]:
    """Merges of a trained tokenizer, which only its JSON contains."""
    found = json.loads(bpe.to_str())["model"]["merges"]
    return [(first, second) for first, second in found]
