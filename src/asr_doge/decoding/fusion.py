"""Shallow fusion: the CTC head proposes hypotheses, and the language model weighs each by its text alone.

Promises: `prefix_beam_search` gives the label sequences of the largest probability, each summed over all its paths that
the beam kept; with a `prior` the beam keeps those of the largest product with it. `WordPrior` is such a prior: the
language model's probability of the complete words of a sequence, each computed once. `text_log_probs` gives the
log-probabilities of whole texts in one pass. No speech is before any text, so nothing need be trained between head and
language model.
It does not know audio or times, nor the final score of a text (see `FusionDecoder`).
Source of the search: Hannun et al., https://arxiv.org/abs/1408.2873.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from asr_doge.decoding.ctc import BLANK
from asr_doge.models.layout import IGNORED_LABEL

LEAST_LIKELY = -9.0
"""A label below this log-posterior is not tried at a frame."""
TRIED = 12
"""Labels tried at a frame, the likeliest."""


MOST_STATES = 64
"""Word sequences whose KV caches are kept at a time."""


@dataclass(frozen=True)
class LabelSequence:
    """A hypothesis of a CTC head.

    Attributes:
        ids: without blanks and repeats.
        log_prob: natural logarithm of the probability of all their paths in the beam.
    """

    ids: tuple[int, ...]
    log_prob: float


def prefix_beam_search(
    log_posteriors: NDArray[np.float32], width: int, prior: Callable[[tuple[int, ...]], float] | None = None
) -> list[LabelSequence]:
    """The likeliest label sequences of a clip, the best first, at most `width`.

    Args:
        log_posteriors: `[T, V]`, natural logarithms.
        width: sequences kept at each frame.
        prior: added to the logarithm of a sequence's probability when the beam is cut, but not to `log_prob`.
    """
    never = -math.inf
    beam: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, never)}  # ends in a blank, in a label
    priors: dict[tuple[int, ...], float] = {(): 0.0}
    for frame in log_posteriors:
        found = _extended(beam, frame)
        # Only what is kept gets its prior, which may cost a pass of the language model; until then, its beginning's.
        ranked = sorted(
            ((ids, ends) for ids, ends in found.items() if max(ends) > never),
            key=lambda item: -_sum(*item[1]) - priors.get(item[0], priors.get(item[0][:-1], 0.0)),
        )
        beam = {ids: (ends[0], ends[1]) for ids, ends in ranked[:width]}
        if prior is not None:
            priors.update((ids, prior(ids)) for ids in beam if ids not in priors)
    best = sorted(beam.items(), key=lambda item: -_sum(*item[1]) - priors.get(item[0], 0.0))
    return [LabelSequence(ids, _sum(*ends)) for ids, ends in best]


def _extended(
    beam: Mapping[tuple[int, ...], tuple[float, float]], frame: NDArray[np.float32]
) -> dict[tuple[int, ...], list[float]]:
    """What the beam becomes with another frame `[V]`: log-probabilities of ending in a blank and in a label."""
    tried = np.argpartition(-frame, min(TRIED, len(frame) - 1))[:TRIED]
    labels = [(int(label), float(frame[label])) for label in tried if label != BLANK and frame[label] > LEAST_LIKELY]
    blank = float(frame[BLANK])
    found: dict[tuple[int, ...], list[float]] = defaultdict(lambda: [-math.inf, -math.inf])
    for ids, (after_blank, after_label) in beam.items():
        either, kept = _sum(after_blank, after_label), found[ids]
        kept[0] = _sum(kept[0], either + blank)
        if ids:
            kept[1] = _sum(kept[1], after_label + float(frame[ids[-1]]))
        for label, log_prob in labels:
            sequence = (*ids, label)
            longer = found[sequence]
            # The same label again needs a blank between, or it is still the one before.
            longer[1] = _sum(longer[1], (after_blank if ids and ids[-1] == label else either) + log_prob)
    return found


def _sum(first: float, second: float) -> float:
    """Logarithm of the sum of two probabilities given by theirs."""
    if first < second:
        first, second = second, first
    return first if second == -math.inf else first + math.log1p(math.exp(second - first))


@dataclass(frozen=True)
class _TextState:
    """The language model after a text.

    Attributes:
        ids: the text's tokens.
        cache: its KV cache.
        log_probs: of the next token, `[V]`.
    """

    ids: list[int]
    cache: DynamicCache
    log_probs: NDArray[np.float32]


class WordPrior:
    """The language model's weighted log-probability of the complete words of a CTC label sequence.

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
        self.bos_id = bos_id
        self.spell = spell
        self.tokenize = tokenize
        self.weight = weight
        self.bonus = bonus
        self.passes = 0
        self._scores: dict[tuple[str, ...], float] = {(): 0.0}
        self._states: dict[tuple[str, ...], _TextState] = {}

    def __call__(self, ids: Sequence[int]) -> float:
        """The prior of label ids; the last word counts once a space or the next word has begun."""
        text = self.spell(ids)
        words = text.split()
        complete = words if text.endswith(" ") else words[:-1]
        return self.weight * self._score(tuple(complete)) + self.bonus * len(complete)

    def _score(self, words: tuple[str, ...]) -> float:
        """Log-probability of a text that may go on."""
        if words not in self._scores:
            before, rest, score = self._split(words)
            if rest:
                score += float(before.log_probs[rest[0]])
            if len(rest) > 1:
                state, inner = self._extend(before, rest)
                self._keep(words, state)
                score += sum(inner)
            self._scores[words] = score
        return self._scores[words]

    def _state(self, words: tuple[str, ...]) -> _TextState:
        if words not in self._states:
            if words:
                before, rest, _ = self._split(words)
            else:
                before, rest = _TextState([], DynamicCache(), np.zeros(0, np.float32)), []
            self._keep(words, self._extend(before, rest)[0] if rest or not words else before)
        return self._states[words]

    def _keep(self, words: tuple[str, ...], state: _TextState) -> None:
        """Keep a state, and no more than `MOST_STATES`: those that are needed again are computed again."""
        while len(self._states) >= MOST_STATES:
            del self._states[next(iter(self._states))]
        self._states[words] = state

    def _split(self, words: tuple[str, ...]) -> tuple[_TextState, list[int], float]:
        """The state before the last word, the tokens after it, and its score.

        Where the last word changes the tokens of those before it: the state of no text, all tokens, and 0.
        """
        ids = self.tokenize(" ".join(words))
        before = self._state(words[:-1])
        if ids[: len(before.ids)] == before.ids:
            return before, ids[len(before.ids) :], self._score(words[:-1])
        return self._state(()), ids, 0.0

    @torch.inference_mode()
    def _extend(self, before: _TextState, rest: list[int]) -> tuple[_TextState, list[float]]:
        """The state after further tokens, and the log-probabilities of all but the first of them."""
        self.passes += 1
        layers = cast("list[DynamicLayer]", before.cache.layers)
        cache = DynamicCache(
            [(layer.keys, layer.values) for layer in layers]
        )  # appends to copies, so that several words may follow one state
        fed = rest if layers else [self.bos_id, *rest]
        ids = torch.tensor([fed], device=self.language_model.device)
        logits: Tensor = self.language_model(input_ids=ids, past_key_values=cache, use_cache=True).logits[0]
        log_probs = logits.float().log_softmax(dim=-1).cpu().numpy()
        inner = [float(log_probs[place, token]) for place, token in enumerate(rest[1:])]
        return _TextState([*before.ids, *rest], cache, log_probs[-1]), inner


@torch.inference_mode()
def text_log_probs(
    language_model: torch.nn.Module, prompt_ids: Sequence[int], rows: Sequence[Sequence[int]], device: torch.device
) -> list[list[float]]:
    """Log-probability of each token of each row of ids after the prompt alone, in one pass."""
    sequences = [torch.tensor([*prompt_ids, *row]) for row in rows]
    labels = [torch.tensor([*[IGNORED_LABEL] * len(prompt_ids), *row]) for row in rows]
    ids = pad_sequence(sequences, batch_first=True).to(device)
    mask = pad_sequence([torch.ones_like(row) for row in sequences], batch_first=True).to(device)
    wanted = pad_sequence(labels, batch_first=True, padding_value=IGNORED_LABEL).to(device)[:, 1:]
    logits: Tensor = language_model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
    chosen = logits.log_softmax(dim=-1).gather(2, wanted.clamp(min=0)[..., None])[..., 0]
    return [scores[len(prompt_ids) - 1 :][: len(row)].tolist() for scores, row in zip(chosen, rows, strict=True)]
