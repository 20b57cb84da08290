"""The CTC loss, as every stage that trains by it computes it.

It does not know what gave the logits.
"""

import torch.nn.functional as F
from torch import Tensor

from asr_doge.decoding.ctc import BLANK


def ctc_loss(logits: Tensor, lengths: Tensor, labels: Tensor, label_lengths: Tensor) -> Tensor:
    """CTC loss per label, averaged over clips; a text that does not fit on its clip counts as 0.

    Args:
        logits: `[B, T, V]`.
        lengths: `[B]`, frames of each clip.
        labels: `[B, L]`.
        label_lengths: `[B]`.
    """
    log_probs = logits.float().log_softmax(dim=-1).transpose(0, 1)
    return F.ctc_loss(log_probs, labels, lengths, label_lengths, BLANK, zero_infinity=True)
