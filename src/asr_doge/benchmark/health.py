"""Check that a model computes finite numbers.

Promises: NaN in a model's weights or outputs is one error line that says where, instead of a transcript that looks like
any other bad one. The check does not make an accelerator wait.
It does not judge whether the numbers are good.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from asr_doge.errors import CheckpointError
from asr_doge.models import LoadedEncoder, LoadedModel
from asr_doge.models.encoders import SpeechEncoderOutput


def check_weights(loaded: LoadedModel | LoadedEncoder, name: str) -> None:
    """Check every weight.

    Raises:
        CheckpointError: one is NaN or infinite.
    """
    for weight, tensor in loaded.module.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"checkpoint '{name}' holds NaN or infinity in {weight}: take an earlier one, or train again"
            )


class NonFiniteOutputs:
    """Records whether encoder or language model gave NaN since `watched_outputs` began."""

    def __init__(self, name: str, device: torch.device) -> None:
        self._name = name
        self._seen = torch.zeros((), dtype=torch.bool, device=device)

    def look(self, outputs: Tensor) -> None:
        """Record NaN in embeddings or logits."""
        self._seen = self._seen | torch.isnan(outputs).any()

    def check(self) -> None:
        """Raise a CheckpointError if there was NaN."""
        if bool(self._seen):
            raise CheckpointError(
                f"checkpoint '{self._name}' gives NaN on these recordings: its weights are damaged or too large;"
                " take an earlier one, or train again"
            )


@contextmanager
def watched_outputs(loaded: LoadedModel | LoadedEncoder, name: str) -> Iterator[NonFiniteOutputs]:
    """Watch the outputs of encoder and language model; NaN from the encoder may never reach the language model."""
    watch = NonFiniteOutputs(name, loaded.device)

    def look_at_speech(_: Any, __: Any, output: SpeechEncoderOutput) -> None:
        watch.look(output.speech_embeddings)
        if output.ctc_logits is not None:
            watch.look(output.ctc_logits)

    def look_at_text(_: Any, __: Any, output: Any) -> None:
        watch.look(output.logits)

    hooks = [loaded.speech_encoder.encoder.register_forward_hook(look_at_speech)]
    if isinstance(loaded, LoadedModel):
        hooks.append(loaded.model.language_model.register_forward_hook(look_at_text))
    try:
        yield watch
    finally:
        for hook in hooks:
            hook.remove()
