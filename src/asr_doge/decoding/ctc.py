"""CTC: the draft transcript that the frozen encoder holds already.

Promises: best-path decoding (argmax, collapse repeats, drop blanks), the way Granite Speech evaluates its CTC head.
It does not know the language model.
"""

from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from asr_doge.models.encoders import SpeechEncoder

BLANK = 0


def ctc_greedy_texts(encoder: SpeechEncoder, ctc_logits: Tensor, ctc_lengths: Tensor) -> list[str]:
    """Draft transcripts of a batch.

    Args:
        encoder: whose head it is; it knows how ids become text.
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


def ctc_label_ids(encoder: SpeechEncoder, text: str) -> list[tuple[int, ...]]:
    """The labels that stand for each letter of a text, of those that the head can write; for each piece, for BPE.

    A letter counts in either case, for a text may be lower-cased where the head's is not.
    """
    if encoder.ctc_units == "bpe":
        return [(label,) for label in encoder.ctc_ids(" ".join(text.split()))]
    letters = []
    for letter in text:
        forms = [encoder.ctc_ids(form) for form in sorted({letter, letter.lower(), letter.upper()})]
        ids = tuple(form[0] for form in forms if len(form) == 1)
        if ids:
            letters.append(ids)
    return letters


def label_log_posteriors(encoder: SpeechEncoder, log_posteriors: NDArray[np.float32], text: str) -> NDArray[np.float32]:
    """Log-posteriors `[T, L]` of the letters of a text, of those that the head can write."""
    columns = [log_posteriors[:, list(ids)].max(axis=1) for ids in ctc_label_ids(encoder, text)]
    return np.stack(columns, axis=1) if columns else log_posteriors[:, :0]


def is_beyond(encoder: SpeechEncoder, text: str) -> bool:
    """Whether the head can write less than half of the letters of a text, so that what it heard says nothing of it.

    A head of Latin letters hears Cyrillic words as silence, or as a few letters that resemble them.
    """
    letters = "".join(filter(str.isalnum, text))
    return len(ctc_label_ids(encoder, letters)) < len(letters) / 2
