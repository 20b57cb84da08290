"""CTC: the draft transcript that the frozen encoder holds already.

Promises: best-path decoding (argmax, collapse repeats, drop blanks), the way Granite Speech evaluates its CTC head.
It does not know the language model.
"""

from itertools import groupby

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
    best = ctc_logits.argmax(dim=-1)
    return [
        encoder.ctc_text([label for label, _ in groupby(row[:length].tolist()) if label != BLANK]).strip()
        for row, length in zip(best, ctc_lengths.tolist(), strict=True)
    ]
