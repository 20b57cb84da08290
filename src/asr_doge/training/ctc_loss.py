"""The CTC loss of every training stage that uses CTC.

It does not know what computed the logits.
"""

import torch.nn.functional as F
from torch import Tensor

from asr_doge.decoding.ctc import BLANK


def ctc_loss(logits: Tensor, lengths: Tensor, labels: Tensor, label_lengths: Tensor) -> Tensor:
    """CTC loss per label, averaged over clips; a text that is too long for its clip counts as 0.

    Args:
        logits: `[B, T, V]`.
        lengths: `[B]`, frames of each clip.
        labels: `[B, L]`.
        label_lengths: `[B]`.
    """
    log_probs = logits.float().log_softmax(dim=-1).transpose(0, 1)
    return F.ctc_loss(log_probs, labels, lengths, label_lengths, BLANK, zero_infinity=True)
