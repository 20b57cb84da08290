"""Shallow fusion: the CTC head proposes hypotheses, and the language model weighs each by its text alone.

Promises: `prefix_beam_search` gives the label sequences of the largest probability, each summed over all its paths that
the beam kept; where it is told priors of sequences, the beam keeps those of the largest product with them.
`search_together` runs the searches of several clips with one `WordPrior`: what each finds does not depend on the
others. No speech is before any text, so nothing need be trained between head and language model.
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
from asr_doge.decoding.word_prior import WordPrior, Words

TRIED = 12
"""Labels tried at a frame, the likeliest."""

MARGIN = 5.0
"""Sequences that are e^5 times less likely than the best of a frame are given up."""

Labels = tuple[int, ...]
Search = Generator[list[Labels], list[float], list["LabelSequence"]]
"""Yields label sequences, is sent the natural logarithm of each one's prior, and returns what it has found."""


@dataclass(frozen=True)
class LabelSequence:
    """A hypothesis of a CTC head.

    Attributes:
        ids: without blanks and repeats.
        log_prob: natural logarithm of the probability of all their paths in the beam.
    """

    ids: Labels
    log_prob: float


class _Ends(NamedTuple):
    """Natural logarithms of what is known of a label sequence.

    Attributes:
        in_blank: the probability of its paths that end in a blank.
        in_label: of those that end in its last label.
        prior: what speaks for it beside the audio.
    """

    in_blank: float
    in_label: float
    prior: float

    @property
    def log_prob(self) -> float:
        return _sum(self.in_blank, self.in_label)

    @property
    def worth(self) -> float:
        return _sum(self.in_blank, self.in_label) + self.prior


_Beam = dict[Labels, _Ends]


def prefix_beam_search(log_posteriors: NDArray[np.float32], width: int, margin: float = math.inf) -> Search:
    """The likeliest label sequences of a clip, the best first, at most `width`.

    Priors are added to the logarithms of probabilities when the beam is cut, but not to `log_prob`. Only what is kept
    gets its prior, which may cost a pass of the language model; until then, it has that of its beginning.

    Args:
        log_posteriors: `[T, V]`, natural logarithms.
        width: sequences kept at each frame.
        margin: sequences that are further below the best of their frame are not kept (natural logarithm).
    """
    beam: _Beam = {(): _Ends(0.0, -math.inf, 0.0)}
    for frame in log_posteriors:
        likeliest = np.argsort(-frame)[:TRIED].tolist()
        found = _extended(beam, frame.tolist(), [label for label in likeliest if label != BLANK], margin)
        worth = {ids: ends.worth for ids, ends in found.items()}
        least = max(worth.values()) - margin
        kept = nlargest(width, (ids for ids, value in worth.items() if value > least), key=worth.__getitem__)
        new = [ids for ids in kept if ids not in beam]
        beam = {ids: found[ids] for ids in kept}
        if new:
            for ids, prior in zip(new, (yield new), strict=True):
                beam[ids] = beam[ids]._replace(prior=prior)
    best = sorted(beam.items(), key=lambda item: -item[1].worth)
    return [LabelSequence(ids, ends.log_prob) for ids, ends in best]


def _extended(beam: _Beam, frame: Sequence[float], tried: Sequence[int], margin: float) -> _Beam:
    """What the beam becomes with another frame `[V]`; new sequences that `margin` would drop are left out.

    Args:
        beam: the best sequences first or nearly so.
        frame: log-posteriors.
        tried: labels to go on with, the likeliest first.
        margin: as in `prefix_beam_search`.
    """
    found = {}
    for ids, (in_blank, in_label, prior) in beam.items():
        again = in_label + frame[ids[-1]] if ids else -math.inf
        before = beam.get(ids[:-1]) if ids else None
        if before is not None:
            again = _sum(again, _grown(ids[:-1], before, ids[-1]) + frame[ids[-1]])
        found[ids] = _Ends(_sum(in_blank, in_label) + frame[BLANK], again, prior)
    best = max(ends.worth for ends in found.values())
    for ids, ends in beam.items():
        worth = ends.worth
        for label in tried:
            if worth + frame[label] <= best - margin:
                break
            longer = (*ids, label)
            if longer not in beam:
                found[longer] = _Ends(-math.inf, _grown(ids, ends, label) + frame[label], ends.prior)
                best = max(best, found[longer].worth)
    return found


def _grown(ids: Labels, ends: _Ends, label: int) -> float:
    """Log-probability of the paths of a sequence after which a label is a further one of its own.

    The same label again needs a blank between, or it is still the one before.
    """
    return ends.in_blank if ids and ids[-1] == label else ends.log_prob


def _sum(first: float, second: float) -> float:
    """Logarithm of the sum of two probabilities given by theirs."""
    if first < second:
        first, second = second, first
    return first if second == -math.inf else first + math.log1p(math.exp(second - first))


@dataclass(frozen=True)
class Found:
    """What the search of a clip found.

    Attributes:
        sequences: the best first.
        passes: of the language model that it needed after that of the first token; it may have shared them.
    """

    sequences: list[LabelSequence]
    passes: int


def search_together(searches: Sequence[Search], prior: WordPrior) -> list[Found]:
    """Run searches to their ends; each goes on until new words need the language model, which reads those of all."""
    found: dict[int, Found] = {}
    answers: dict[int, list[float] | None] = dict.fromkeys(range(len(searches)))
    seen: list[set[Words]] = [{()} for _ in searches]
    passes = [0] * len(searches)
    while answers:
        waiting: dict[int, list[Words]] = {}
        for number, answer in answers.items():
            try:
                while True:
                    asked = next(searches[number]) if answer is None else searches[number].send(answer)
                    texts = [prior.complete_words(ids) for ids in asked]
                    passes[number] += not seen[number].issuperset(texts)
                    seen[number].update(texts)
                    if not prior.has_read(texts):
                        waiting[number] = texts
                        break
                    answer = prior(texts)
            except StopIteration as end:
                found[number] = Found(end.value, passes[number])
        prior.read(words for texts in waiting.values() for words in texts)
        answers = {number: prior(texts) for number, texts in waiting.items()}
    return [found[number] for number in range(len(searches))]
