"""Score the words that label sequences spell with the language model, for beam searches.

Promises: `LanguageModelScorer` scores the complete words of label sequences, and whole texts, by the language model
alone. A call reads only tokens that no earlier call has read, in one pass; scores do not depend on which texts are read
together, except for mixtures of experts whose router looks at all tokens of a pass.
It does not know audio or clips, nor how label sequences are searched (see `asr_doge.decoding.fusion`). It ignores
sliding-window attention: texts must be shorter than the window, as those of chunks are in published models.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

MOST_STATES = 64
"""Texts whose KV caches are kept, for each search."""
MOST_LOG_PROBS = 1 << 24
"""Log-probabilities of next tokens (64 MiB) beyond which several searches keep no more texts than one."""

Words = tuple[str, ...]
Read = tuple["_TextState", list[int]]
"""The state after a text, and the tokens that follow it and were not read yet."""


@dataclass(frozen=True)
class _TextState:
    """The language model's state after a text.

    Attributes:
        ids: the text's tokens.
        log_probs: natural logarithm of the probability of each.
        next_log_probs: of the next token, `[V]`.
        cache: the KV cache: for the first token and each of `ids`, keys and values of all layers, `[D]`. A text that
            continues another shares its tensors.
    """

    ids: list[int]
    log_probs: list[float]
    next_log_probs: NDArray[np.float32]
    cache: list[Tensor]


class LanguageModelScorer:
    """Scores the complete words of CTC label sequences: weighted log-probability plus a bonus for each word.

    Args:
        language_model: a causal language model that reads `[bos] text`.
        bos_id: its first token.
        spell: the text of label ids, with the spaces that begin or end words.
        tokenize: the language model's tokens of texts, without special ones.
        weight: of the log-probability.
        bonus: added for each word.
        searches: number of searches that share it.

    Attributes:
        passes: of the language model, so far.
    """

    def __init__(
        self,
        language_model: PreTrainedModel,
        bos_id: int,
        spell: Callable[[Sequence[int]], str],
        tokenize: Callable[[list[str]], list[list[int]]],
        weight: float,
        bonus: float,
        searches: int = 1,
    ) -> None:
        self.language_model = language_model
        self.spell = spell
        self.tokenize = tokenize
        self.weight = weight
        self.bonus = bonus
        self.passes = 0
        self._shapes: list[tuple[int, int]] = []  # heads and width of keys and values, layer by layer
        (first,) = self._extend([(_TextState([], [], np.zeros(0, np.float32), []), [bos_id])])
        self._start = replace(first, ids=[], log_probs=[])  # the first token is no part of the text
        self._scores: dict[Words, float] = {(): 0.0}
        self._states: dict[Words, _TextState] = {}
        self._most_states = max(MOST_STATES, min(MOST_STATES * searches, MOST_LOG_PROBS // len(first.next_log_probs)))

    def complete_words(self, ids: Sequence[int]) -> Words:
        """The words that label ids spell; a last word counts once a space or the next word has begun."""
        text = self.spell(ids)
        words = text.split()
        return tuple(words if text.endswith(" ") else words[:-1])

    def has_read(self, texts: Iterable[Words]) -> bool:
        """Whether all these texts have been scored, so that no pass is needed."""
        return all(words in self._scores for words in texts)

    def __call__(self, texts: Sequence[Words]) -> list[float]:
        """The scores of texts; those not read yet are read, in one pass."""
        self.read(texts)
        return [self.weight * self._scores[words] + self.bonus * len(words) for words in texts]

    def read(self, texts: Iterable[Words]) -> None:
        """Score the texts that are new, in one pass, and keep the newest states."""
        new = [words for words in dict.fromkeys(texts) if words not in self._scores]
        states = dict(zip(new, self._extend(self._split(new)), strict=True))
        self._scores.update((words, sum(state.log_probs)) for words, state in states.items())
        self._states.update(states)
        for words in list(self._states)[: -self._most_states]:  # what is needed again is read again, from the start
            del self._states[words]

    def log_probs(self, texts: Sequence[str], eos_id: int) -> list[tuple[list[int], list[float]]]:
        """The tokens of whole texts, with the one that ends each, and natural logarithms of their probabilities."""
        rows = [(before, [*rest, eos_id]) for before, rest in self._split([tuple(text.split()) for text in texts])]
        return [(state.ids, state.log_probs) for state in self._extend(rows)]

    def _split(self, texts: Sequence[Words]) -> list[Read]:
        """For each text the kept state of all of it, or of all but its last word, and the tokens that follow.

        If neither is kept, or the last word changes the tokens before it, it is the state of the empty text.
        """
        rows = []
        for words, ids in zip(texts, self.tokenize([" ".join(words) for words in texts]) if texts else [], strict=True):
            before = self._states.get(words) or self._states.get(words[:-1], self._start)
            if ids[: len(before.ids)] != before.ids:
                before = self._start
            rows.append((before, ids[len(before.ids) :]))
        return rows

    @torch.inference_mode()
    def _extend(self, rows: Sequence[Read]) -> list[_TextState]:
        """The states after the unread tokens of all rows, read in one pass.

        All texts are packed into one row, in which a common prefix occurs once, and a mask lets each token attend to
        those of its own text only (tree attention, https://arxiv.org/abs/2305.09781).
        """
        if not any(rest for _, rest in rows):  # words without tokens
            return [before for before, _ in rows]
        self.passes += 1
        device = self.language_model.device
        read = {id(token): token for before, _ in rows for token in before.cache}
        cache = self._cache(list(read.values()))
        places = [len(before.cache) + number for before, rest in rows for number in range(len(rest))]
        logits: Tensor = self.language_model(
            input_ids=torch.tensor([[token for _, rest in rows for token in rest]], device=device),
            attention_mask=_own_texts(rows, list(read))[None, None].to(device),
            position_ids=torch.tensor([places], device=device),
            past_key_values=cache,
            use_cache=True,
        ).logits
        log_probs = logits[0].float().log_softmax(dim=-1).cpu().numpy()
        new = self._tokens(cast("list[DynamicLayer]", cache.layers), len(read))
        states, start = [], 0
        for before, rest in rows:
            part = slice(start, start + len(rest))
            states.append(_extended(before, rest, log_probs[part], new[part]))
            start += len(rest)
        return states

    def _cache(self, tokens: list[Tensor]) -> DynamicCache:
        """The KV cache of one row with these tokens."""
        if not tokens:
            return DynamicCache()
        parts = torch.stack(tokens).split([heads * size for heads, size in self._shapes], dim=1)
        shaped = [
            part.unflatten(1, shape).transpose(0, 1)[None] for part, shape in zip(parts, self._shapes, strict=True)
        ]
        return DynamicCache(zip(shaped[::2], shaped[1::2], strict=True))

    def _tokens(self, layers: list[DynamicLayer], start: int) -> tuple[Tensor, ...]:
        """Keys and values of all layers for each token from `start` on, `[D]` each."""
        parts = [part for layer in layers for part in (layer.keys, layer.values) if part is not None]
        self._shapes = [(part.shape[1], part.shape[3]) for part in parts]
        tokens = torch.cat([part[0, :, start:].transpose(0, 1).flatten(1) for part in parts], dim=1)
        return tuple(token.clone() for token in tokens)  # a view would keep those of all other texts


def _own_texts(rows: Sequence[Read], read: Sequence[int]) -> Tensor:
    """The attention mask `[new, read + new]`: a new token attends to those before it in its text, and to itself.

    Args:
        rows: the texts.
        read: identities of the tokens in the cache.
    """
    place = {token: number for number, token in enumerate(read)}
    count = sum(len(rest) for _, rest in rows)
    mask = np.zeros((count, len(read) + count), dtype=bool)
    start = 0
    for before, rest in rows:
        end = start + len(rest)
        mask[start:end, [place[id(token)] for token in before.cache]] = True
        mask[start:end, len(read) + start : len(read) + end] = np.tri(len(rest), dtype=bool)
        start = end
    return torch.from_numpy(mask)


def _extended(
    before: _TextState, rest: list[int], log_probs: NDArray[np.float32], cache: Sequence[Tensor]
) -> _TextState:
    """The state after `rest`, whose tokens gave `log_probs` `[len(rest), V]` of the next ones."""
    if not rest:
        return before
    first = float(before.next_log_probs[rest[0]]) if before.cache else 0.0
    found = [first, *(float(log_probs[place, token]) for place, token in enumerate(rest[1:]))]
    return _TextState([*before.ids, *rest], [*before.log_probs, *found], log_probs[-1].copy(), [*before.cache, *cache])
