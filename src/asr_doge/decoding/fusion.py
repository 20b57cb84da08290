"""Shallow fusion: the CTC head proposes hypotheses, and the language model weighs each by its text alone.

Promises: `prefix_beam_search` gives the label sequences of the largest probability, each summed over all its paths that
the beam kept; with a `prior` (`asr_doge.decoding.word_prior`) the beam keeps those of the largest product with it.
`text_log_probs` gives the log-probabilities of whole texts in one pass. No speech is before any text, so nothing need
be trained between head and language model.
It does not know audio or times, nor the final score of a text (see `FusionDecoder`).
Source of the search: Hannun et al., https://arxiv.org/abs/1408.2873.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from asr_doge.decoding.ctc import BLANK
from asr_doge.models.layout import IGNORED_LABEL

LEAST_LIKELY = -9.0
"""A label below this log-posterior is not tried at a frame."""
TRIED = 12
"""Labels tried at a frame, the likeliest."""

MARGIN = 5.0
"""Sequences that are e^5 times less likely than the best of a frame are given up."""

Prior = Callable[[Sequence[tuple[int, ...]]], list[float]]
"""Natural logarithms of what speaks for label sequences beside the audio."""


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
    log_posteriors: NDArray[np.float32], width: int, prior: Prior | None = None, margin: float = math.inf
) -> list[LabelSequence]:
    """The likeliest label sequences of a clip, the best first, at most `width`.

    Args:
        log_posteriors: `[T, V]`, natural logarithms.
        width: sequences kept at each frame.
        prior: of sequences, added to the logarithms of their probabilities when the beam is cut, but not to `log_prob`.
        margin: sequences that are further below the best of their frame are not kept (natural logarithm).
    """
    beam: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -math.inf)}  # ends in a blank, in a label
    priors: dict[tuple[int, ...], float] = {(): 0.0}
    for frame in log_posteriors:
        found = _extended(beam, frame)
        # Only what is kept gets its prior, which may cost a pass of the language model; until then, its beginning's.
        worth = {ids: _sum(*ends) + priors.get(ids, priors.get(ids[:-1], 0.0)) for ids, ends in found.items()}
        least = max(worth.values()) - margin
        kept = nlargest(width, (ids for ids, value in worth.items() if value > least), key=worth.__getitem__)
        beam = {ids: (found[ids][0], found[ids][1]) for ids in kept}
        new = [ids for ids in kept if ids not in priors]
        if prior is not None and new:
            priors.update(zip(new, prior(new), strict=True))
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
