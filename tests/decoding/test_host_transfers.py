"""How often the host waits for what a device computes: counted, since each time an accelerator stands still.

Counted are the calls by which Python learns values of a tensor, in this package's own code.
"""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from asr_doge.decoding.draft import Verifier
from asr_doge.models import LoadedModel
from asr_doge.models.encoders import SpeechEncoderOutput, encode
from tests.models import tiny

WAITING = {
    *(getattr(Tensor, name) for name in ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__")),
    *(getattr(Tensor, name) for name in ("__float__", "__index__", "masked_select", "unique")),
    torch.nonzero,
    torch.masked_select,
}
INDEXING = (Tensor.__getitem__, Tensor.__setitem__)
ON_THE_CPU_ONLY = {"group_by_length", "_batch"}
"""Functions that an accelerator's batches do not pass through, or that work on lists."""


class Waits(TorchFunctionMode):
    """Counts them, by the function that waits."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.masks = 0  # those of them that look for the true places of a mask

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func in WAITING or (func in INDEXING and _has_mask(args[1])):
            frame = sys._getframe(1)
            name = frame.f_code.co_name
            if "asr_doge" in frame.f_code.co_filename and name not in ON_THE_CPU_ONLY:
                self.counts[name] += 1
                self.masks += func in INDEXING
        return func(*args, **(kwargs or {}))


def _has_mask(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, Tensor) and part.dtype == torch.bool for part in parts)


def test_the_counter_counts() -> None:
    with Waits() as waits:
        exec(compile("t.item(); t[t > 0]; bool(t); t[0]; t.sum()", "asr_doge/x.py", "exec"), {"t": torch.ones(1)})
    assert (waits.counts, waits.masks) == ({"<module>": 3}, 1)


@pytest.mark.parametrize("length", [0, 4, 20])
def test_verification_waits_once_a_pass(assembled: LoadedModel, length: int) -> None:
    """And once more for the longest row of the first, however many rows there are."""
    clips, mask = tiny.padded(tiny.random_clips((9, 3, 6, 12), tiny.SPEECH_SIZE, seed=3))
    verifier = Verifier(assembled.model, frozenset([1]), assembled.processor.tokenizer.convert_ids_to_tokens)
    drafts = [[7 + row] * length for row in range(4)]
    with Waits() as waits:
        decoded = verifier.decode(SpeechEncoderOutput(clips, mask.sum(dim=1)), drafts, [12, 9, 12, 12])
    passes = max(row.passes for row in decoded)
    assert passes > 1
    counts = {name: count for name, count in waits.counts.items() if name != "prefill"}  # by groups, on the CPU
    assert counts == {"_scores": passes, "left_pad": 1}


def test_the_encoder_waits_once_a_batch(assembled: LoadedModel) -> None:
    """For the lengths, of which the other functions have a copy on the CPU."""
    features, mask = tiny.padded(tiny.random_clips((40, 25, 3)))
    with Waits() as waits:
        output = encode(assembled.model.encoder, features, mask, return_ctc_logits=True)
    assert output.ctc_logits is not None
    assert waits.masks == 0
    assert waits.counts["forward"] == 1
    assert set(waits.counts) <= {"forward", "_layer_states", "project", "__init__"}
