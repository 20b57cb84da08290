"""The language model's opinion of the words that label sequences spell, for a search that asks again and again.

Promises: `WordPrior` scores the complete words of label sequences by the language model alone. It reads only words that
are new, all those of a call in one pass; the result does not depend on what is read together.
It does not know audio, nor which label sequences are worth asking about (see `asr_doge.decoding.fusion`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

MOST_STATES = 64
"""Texts whose KV caches are kept at a time."""

Words = tuple[str, ...]
Cache = list[tuple[Tensor, ...]]


@dataclass(frozen=True)
class _TextState:
    """The language model after a text.

    Attributes:
        ids: the text's tokens.
        score: natural logarithm of their probability.
        log_probs: of the next token, `[V]`.
        cache: keys and values of each layer, `[1 + len(ids), heads, head_dim]`: those of the model's first token, too.
    """

    ids: list[int]
    score: float
    log_probs: NDArray[np.float32]
    cache: Cache

    @property
    def read(self) -> int:
        """Tokens in the cache."""
        return len(self.cache[0][0]) if self.cache else 0


class WordPrior:
    """The language model's weighted log-probability of the complete words of CTC label sequences.

    Args:
        language_model: a causal language model that reads `[bos] text`.
        bos_id: its first token.
        spell: the text of label ids, with the spaces that begin or end words.
        tokenize: the language model's tokens of a text, without special ones.
        weight: of the log-probability.
        bonus: added for each word.

    Attributes:
        passes: of the language model, so far.
    """

    def __init__(
        self,
        language_model: PreTrainedModel,
        bos_id: int,
        spell: Callable[[Sequence[int]], str],
        tokenize: Callable[[str], list[int]],
        weight: float,
        bonus: float,
    ) -> None:
        self.language_model = language_model
        self.spell = spell
        self.tokenize = tokenize
        self.weight = weight
        self.bonus = bonus
        self.passes = 0
        (first,) = self._extend([(_TextState([], 0.0, np.zeros(0, np.float32), []), [bos_id])])
        self._start = replace(first, ids=[])  # the first token is no part of the text
        self._scores: dict[Words, float] = {(): 0.0}
        self._states: dict[Words, _TextState] = {}

    def __call__(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """The priors of label ids; a last word counts once a space or the next word has begun."""
        texts = [self._complete_words(ids) for ids in sequences]
        self._read([words for words in dict.fromkeys(texts) if words not in self._scores])
        return [self.weight * self._scores[words] + self.bonus * len(words) for words in texts]

    def _complete_words(self, ids: Sequence[int]) -> Words:
        text = self.spell(ids)
        words = text.split()
        return tuple(words if text.endswith(" ") else words[:-1])

    def _read(self, texts: Sequence[Words]) -> None:
        """Score texts, and keep the newest states."""
        found = {words: self._split(words) for words in texts}
        longer = {words: row for words, row in found.items() if row[1]}
        states = {words: before for words, (before, rest) in found.items() if not rest}  # a word without tokens
        if longer:
            states.update(zip(longer, self._extend(list(longer.values())), strict=True))
        self._scores.update((words, state.score) for words, state in states.items())
        self._states.update(states)
        for words in list(self._states)[:-MOST_STATES]:  # what is needed again is read again, from the start
            del self._states[words]

    def _split(self, words: Words) -> tuple[_TextState, list[int]]:
        """The state before the last word, and the tokens after it.

        It is the state of no text where that state is not kept, or where the last word changes the tokens before it.
        """
        ids = self.tokenize(" ".join(words))
        before = self._states.get(words[:-1], self._start)
        if ids[: len(before.ids)] != before.ids:
            before = self._start
        return before, ids[len(before.ids) :]

    @torch.inference_mode()
    def _extend(self, rows: Sequence[tuple[_TextState, list[int]]]) -> list[_TextState]:
        """The states after further tokens, all read in one pass: caches are padded on the left, tokens on the right."""
        self.passes += 1
        device = self.language_model.device
        ids = pad_sequence([torch.tensor(rest) for _, rest in rows], batch_first=True)
        read, new = (torch.tensor(counts) for counts in zip(*((b.read, len(rest)) for b, rest in rows), strict=True))
        width = int(read.max())
        places = torch.arange(-width, ids.shape[1])
        mask = (places >= -read[:, None]) & (places < new[:, None])
        cache = DynamicCache(_padded([before.cache for before, _ in rows]))
        logits: Tensor = self.language_model(
            input_ids=ids.to(device),
            attention_mask=mask.long().to(device),
            position_ids=(read[:, None] + torch.arange(ids.shape[1])).to(device),
            past_key_values=cache,
            use_cache=True,
        ).logits
        log_probs = logits.float().log_softmax(dim=-1).cpu().numpy()
        layers = cast("list[DynamicLayer]", cache.layers)
        states = []
        for row, (before, rest) in enumerate(rows):
            real = slice(width - before.read, width + len(rest))
            kept = [_row(layer, row, real) for layer in layers]
            states.append(_extended(before, rest, log_probs[row], kept))
        return states


def _padded(caches: Sequence[Cache]) -> Cache:
    """Caches of several texts as one, `[B, heads, longest, head_dim]` for each layer, padded on the left."""
    layers = zip(*caches, strict=True)
    return [tuple(_left_padded(list(rows)) for rows in zip(*layer, strict=True)) for layer in layers]


def _left_padded(rows: list[Tensor]) -> Tensor:
    """Rows `[T, heads, head_dim]` as `[B, heads, longest, head_dim]`."""
    return pad_sequence(rows, batch_first=True, padding_side="left").transpose(1, 2)


def _row(layer: DynamicLayer, row: int, real: slice) -> tuple[Tensor, ...]:
    """Keys and values of a row's tokens, `[T, heads, head_dim]`."""
    assert layer.keys is not None
    assert layer.values is not None
    return layer.keys[row, :, real].transpose(0, 1), layer.values[row, :, real].transpose(0, 1)


def _extended(before: _TextState, rest: list[int], log_probs: NDArray[np.float32], cache: Cache) -> _TextState:
    """The state after `rest`, whose tokens gave `log_probs` `[at least len(rest), V]` of the next ones."""
    score = before.score + sum(float(log_probs[place, token]) for place, token in enumerate(rest[1:]))
    if before.cache:
        score += float(before.log_probs[rest[0]])
    return _TextState([*before.ids, *rest], score, log_probs[len(rest) - 1], cache)
