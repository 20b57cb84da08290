"""Decode the frozen encoder's CTC head: the draft transcript.

Promises: best-path decoding (argmax, collapse repeats, drop blanks), as Granite Speech evaluates its CTC head.
It does not know the language model.
"""

from collections.abc import Sequence
from functools import reduce
from itertools import groupby
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from asr_doge.models.encoders import SpeechEncoder

BLANK = 0

_SPELLINGS: WeakKeyDictionary[object, dict[str, tuple[int, ...]]] = WeakKeyDictionary()
"""Labels of the characters met so far, of each alphabet: a vocabulary, or an encoder that spells in a way of its own.
They are forgotten with it."""


def ctc_greedy_texts(encoder: SpeechEncoder, ctc_logits: Tensor, ctc_lengths: Tensor) -> list[str]:
    """Draft transcripts of a batch.

    Args:
        encoder: the owner of the head; it converts ids into text.
        ctc_logits: `[B, T, V]`.
        ctc_lengths: `[B]`.
    """
    return [encoder.ctc_text(ids).strip() for ids in ctc_greedy_ids(ctc_logits, ctc_lengths)]


def ctc_greedy_ids(ctc_logits: Tensor, ctc_lengths: Tensor) -> list[list[int]]:
    """Ids of the best path of each clip, without repeats and blanks; arguments as above."""
    best = ctc_logits.argmax(dim=-1)
    return [
        [label for label, _ in groupby(row[:length].tolist()) if label != BLANK]
        for row, length in zip(best, ctc_lengths.tolist(), strict=True)
    ]


def ctc_log_posteriors(ctc_logits: Tensor, ctc_lengths: Tensor) -> list[NDArray[np.float32]]:
    """Log-posteriors of each clip of a batch, `[T, V]` on the CPU, without padding; arguments as above."""
    rows = ctc_logits.float().log_softmax(dim=-1).cpu().numpy()
    return [row[:length] for row, length in zip(rows, ctc_lengths.tolist(), strict=True)]


def best_path_probabilities(log_posteriors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probability of the best path's label at each frame where it is not the blank, `[labels]`.

    They are near 1 for speech that the head knows, and far lower for another language or noise.

    Args:
        log_posteriors: `[T, V]`, natural logarithms.
    """
    labels = log_posteriors.argmax(axis=1)
    return np.exp(log_posteriors[labels != BLANK].max(axis=1, initial=-np.inf))


def ctc_label_ids(encoder: SpeechEncoder, text: str) -> list[tuple[int, ...]]:
    """The labels that stand for each character of a text (with BPE, for each token), for those that the head can spell.

    Case is ignored, since a text may be in lower case and the head's labels not.
    """
    if encoder.ctc_units == "bpe":
        return [(label,) for label in encoder.ctc_ids(" ".join(text.split()))]
    alphabet = encoder.vocabulary if encoder.vocabulary is not None else encoder
    labels = _SPELLINGS.setdefault(alphabet, {})
    for character in set(text).difference(labels):
        forms = [encoder.ctc_ids(form) for form in sorted({character, character.lower(), character.upper()})]
        labels[character] = tuple(form[0] for form in forms if len(form) == 1)
    return [labels[character] for character in text if labels[character]]


def label_log_posteriors(log_posteriors: NDArray[np.float32], labels: Sequence[tuple[int, ...]]) -> NDArray[np.float32]:
    """Log-posteriors `[T, L]` of characters, each that of its likeliest label; `labels` as from `ctc_label_ids`."""
    if not labels:
        return log_posteriors[:, :0]
    most = max(map(len, labels))
    alternatives = zip(*(ids + ids[-1:] * (most - len(ids)) for ids in labels), strict=True)
    return reduce(np.maximum, (log_posteriors.take(ids, axis=1) for ids in alternatives))


def cannot_spell(encoder: SpeechEncoder, text: str) -> bool:
    """Whether the head can spell less than half of the characters of a text, so that its output says nothing about it.

    For Cyrillic words, a head of Latin characters gives blanks, or a few characters that resemble them.
    """
    spoken = "".join(filter(str.isalnum, text))
    labels = ctc_label_ids(encoder, spoken)
    spelled = len(labels)
    if encoder.ctc_units == "bpe":  # whose labels are several characters each
        spelled = sum(map(str.isalnum, encoder.ctc_text([ids[0] for ids in labels])))
    return spelled < len(spoken) / 2
