"""Shallow fusion: the CTC head proposes hypotheses, and the language model scores the words of each.

Promises: `prefix_beam_search` gives the label sequences of the largest probability, each summed over all its paths that
the beam kept; given word scores, the beam keeps those with the largest sum of both. `search_together` runs the searches
of several clips with one `LanguageModelScorer`; what a search finds does not depend on the others. The language model
reads text without speech, so no adapter need be trained.
It does not know audio or times, nor the final score of a text (see `FusionDecoder`).
Source of the search: Hannun et al., https://arxiv.org/abs/1408.2873.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from asr_doge.decoding.ctc import BLANK
from asr_doge.decoding.language_model_scorer import LanguageModelScorer, Words

LABELS_PER_FRAME = 12
"""The most probable labels of a frame, with which sequences are extended."""

MARGIN = 5.0
"""Sequences that are e^5 times less probable than the best of their frame are dropped."""

Labels = tuple[int, ...]
Search = Generator[list[Labels], list[float], list["LabelSequence"]]
"""Yields label sequences, is sent the score of each one's words, and returns the sequences it found."""


@dataclass(frozen=True)
class LabelSequence:
    """A hypothesis of a CTC head.

    Attributes:
        ids: without blanks and repeats.
        log_prob: natural logarithm of the probability of all their paths in the beam.
    """

    ids: Labels
    log_prob: float


class _PrefixScore(NamedTuple):
    """The scores of a label sequence.

    Attributes:
        blank: natural logarithm of the probability of its paths that end in a blank.
        non_blank: of those that end in its last label.
        words: score of its words by the language model.
    """

    blank: float
    non_blank: float
    words: float

    @property
    def log_prob(self) -> float:
        return _sum(self.blank, self.non_blank)

    @property
    def total(self) -> float:
        return self.log_prob + self.words


_Beam = dict[Labels, _PrefixScore]


def prefix_beam_search(log_posteriors: NDArray[np.float32], width: int, margin: float = math.inf) -> Search:
    """The most probable label sequences of a clip, best first, at most `width`.

    Word scores decide what the beam keeps, but are not in `log_prob`. Only a sequence that is kept gets its own score,
    which may cost a pass of the language model; until then it has that of its prefix.

    Args:
        log_posteriors: `[T, V]`, natural logarithms.
        width: sequences kept at each frame.
        margin: sequences whose score is further below the best of their frame are dropped.
    """
    beam: _Beam = {(): _PrefixScore(0.0, -math.inf, 0.0)}
    for frame in log_posteriors:
        labels = [label for label in np.argsort(-frame)[:LABELS_PER_FRAME].tolist() if label != BLANK]
        extended = _extended(beam, frame.tolist(), labels, margin)
        totals = {ids: score.total for ids, score in extended.items()}
        least = max(totals.values()) - margin
        kept = nlargest(width, (ids for ids, total in totals.items() if total > least), key=totals.__getitem__)
        new = [ids for ids in kept if ids not in beam]
        beam = {ids: extended[ids] for ids in kept}
        if new:
            for ids, words in zip(new, (yield new), strict=True):
                beam[ids] = beam[ids]._replace(words=words)
    best = sorted(beam.items(), key=lambda item: -item[1].total)
    return [LabelSequence(ids, score.log_prob) for ids, score in best]


def _extended(beam: _Beam, frame: Sequence[float], labels: Sequence[int], margin: float) -> _Beam:
    """The beam after one more frame `[V]`, without new sequences that `margin` would drop.

    Args:
        beam: the best sequences first or nearly so.
        frame: log-posteriors.
        labels: to extend sequences with, the most probable first.
        margin: as in `prefix_beam_search`.
    """
    extended = {}
    for ids, score in beam.items():
        non_blank = score.non_blank + frame[ids[-1]] if ids else -math.inf
        prefix = beam.get(ids[:-1]) if ids else None
        if prefix is not None:
            non_blank = _sum(non_blank, _before_label(ids[:-1], prefix, ids[-1]) + frame[ids[-1]])
        extended[ids] = _PrefixScore(score.log_prob + frame[BLANK], non_blank, score.words)
    best = max(score.total for score in extended.values())
    for ids, score in beam.items():
        total = score.total
        for label in labels:
            if total + frame[label] <= best - margin:
                break
            longer = (*ids, label)
            if longer not in beam:
                non_blank = _before_label(ids, score, label) + frame[label]
                extended[longer] = _PrefixScore(-math.inf, non_blank, score.words)
                best = max(best, extended[longer].total)
    return extended


def _before_label(ids: Labels, score: _PrefixScore, label: int) -> float:
    """Log-probability of the paths of a sequence that `label` may extend.

    If it is the last label once more, only those that end in a blank: without one, it is a repeat of the last label.
    """
    return score.blank if ids and ids[-1] == label else score.log_prob


def _sum(first: float, second: float) -> float:
    """Logarithm of the sum of two probabilities, given their logarithms."""
    if first < second:
        first, second = second, first
    return first if second == -math.inf else first + math.log1p(math.exp(second - first))


@dataclass(frozen=True)
class SearchResult:
    """The result of searching a clip.

    Attributes:
        sequences: best first.
        passes: number of language-model passes that the search needed, perhaps together with others; the pass of the
            first token is not counted.
    """

    sequences: list[LabelSequence]
    passes: int


def search_together(searches: Sequence[Search], scorer: LanguageModelScorer) -> list[SearchResult]:
    """Run searches to their ends. Each runs until it has new words; one pass then scores the new words of all."""
    results: dict[int, SearchResult] = {}
    answers: dict[int, list[float] | None] = dict.fromkeys(range(len(searches)))
    seen: list[set[Words]] = [{()} for _ in searches]
    passes = [0] * len(searches)
    while answers:
        waiting: dict[int, list[Words]] = {}
        for number, answer in answers.items():
            try:
                while True:
                    asked = next(searches[number]) if answer is None else searches[number].send(answer)
                    texts = [scorer.complete_words(ids) for ids in asked]
                    passes[number] += not seen[number].issuperset(texts)
                    seen[number].update(texts)
                    if not scorer.has_read(texts):
                        waiting[number] = texts
                        break
                    answer = scorer(texts)
            except StopIteration as end:
                results[number] = SearchResult(end.value, passes[number])
        scorer.read(words for texts in waiting.values() for words in texts)
        answers = {number: scorer(texts) for number, texts in waiting.items()}
    return [results[number] for number in range(len(searches))]
