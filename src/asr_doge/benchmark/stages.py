"""Observe the stages of a transcription from outside, while it runs normally.

Promises: the observed model and calls are those of `asr_doge.inference`, by hooks that are removed afterwards, so
nothing is measured on a copy. Stages do not overlap.
It does not know what observers measure (see `speed` and `memory`).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, Protocol, get_args

from torch import nn

from asr_doge.models import LoadedEncoder, LoadedModel

Stage = Literal["audio", "log_mel", "encoder", "adapter", "prefill", "generation"]
"""audio: file to waveform. prefill: the language model reads prompt and speech. generation: its other passes."""
STAGES: tuple[Stage, ...] = get_args(Stage)


class StageObserver(Protocol):
    """Notified when a stage begins and when it ends."""

    def enter(self, stage: Stage) -> None:
        """A stage begins."""

    def leave(self, stage: Stage) -> None:
        """The stage entered last ends."""


@contextmanager
def observed(loaded: LoadedModel | LoadedEncoder, observer: StageObserver) -> Iterator[None]:
    """Notify `observer` of every stage that the model runs meanwhile; reading audio is not part of the model."""
    speech_encoder = loaded.speech_encoder
    hooks = _hooks(speech_encoder.encoder, lambda inputs: "encoder", observer)
    if isinstance(loaded, LoadedModel):
        hooks += _hooks(loaded.model.adapter, lambda inputs: "adapter", observer)
        hooks += _hooks(loaded.model.language_model, _language_model_stage, observer)
    try:
        with _observed_calls(speech_encoder.feature_extractor, observer):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _language_model_stage(inputs: Mapping[str, Any]) -> Stage:
    """A pass without a cache reads new speech (prefill); rows of very different length are prefilled in several."""
    cache = inputs.get("past_key_values")
    return "prefill" if cache is None or not cache.get_seq_length() else "generation"


def _hooks(module: nn.Module, stage_of: Callable[[Mapping[str, Any]], Stage], observer: StageObserver) -> list[Any]:
    """Add hooks before and after a module's passes; `stage_of` gives the stage of a pass from its inputs."""
    stages: list[Stage] = []

    def before(_: nn.Module, __: tuple[Any, ...], inputs: Mapping[str, Any]) -> None:
        stages.append(stage_of(inputs))
        observer.enter(stages[-1])

    def after(*_: Any) -> None:
        observer.leave(stages.pop())

    return [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]


@contextmanager
def _observed_calls(extractor: Any, observer: StageObserver) -> Iterator[None]:
    """Observe the calls of a feature extractor, which is not a module and has no hooks.

    Python looks calls up on the class, so the object temporarily gets a class of its own.
    """
    plain = type(extractor)

    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        observer.enter("log_mel")
        features = plain.__call__(self, *arguments, **options)
        observer.leave("log_mel")
        return features

    extractor.__class__ = type(plain.__name__, (plain,), {"__call__": call})
    try:
        yield
    finally:
        extractor.__class__ = plain
