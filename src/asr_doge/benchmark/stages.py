"""Watching the stages of a transcription from outside, as it runs for any user.

Promises: what is watched is the very model and the very calls of `asr_doge.inference`, by hooks that are gone
afterwards, so that nothing measured is measured on a copy. Stages do not overlap.
It does not know what is measured at their ends (see `speed` and `memory`).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, Protocol, get_args

from torch import nn

from asr_doge.models import LoadedModel

Stage = Literal["audio", "log_mel", "encoder", "adapter", "prefill", "generation"]
"""audio: file to waveform. prefill: the language model reads prompt and speech. generation: its other passes."""
STAGES: tuple[Stage, ...] = get_args(Stage)


class StageObserver(Protocol):
    """Told when a stage begins and when it ends."""

    def enter(self, stage: Stage) -> None:
        """A stage begins."""

    def leave(self, stage: Stage) -> None:
        """The stage entered last is over."""


@contextmanager
def observed(loaded: LoadedModel, observer: StageObserver) -> Iterator[None]:
    """Tell `observer` of every stage of whatever the model does meanwhile; reading audio is not the model's."""
    model = loaded.model
    hooks = [
        *_hooks(model.encoder, lambda inputs: "encoder", observer),
        *_hooks(model.adapter, lambda inputs: "adapter", observer),
        *_hooks(model.language_model, _language_model_stage, observer),
    ]
    try:
        with _observed_calls(loaded.processor.feature_extractor, observer):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _language_model_stage(inputs: Mapping[str, Any]) -> Stage:
    """A pass that has nothing to go on from reads new speech; unlike rows of one batch are read in several."""
    cache = inputs.get("past_key_values")
    return "prefill" if cache is None or not cache.get_seq_length() else "generation"


def _hooks(module: nn.Module, stage_of: Callable[[Mapping[str, Any]], Stage], observer: StageObserver) -> list[Any]:
    """Hooks before and after a module's passes; `stage_of` their inputs says which stage a pass is."""
    stages: list[Stage] = []

    def before(_: nn.Module, __: tuple[Any, ...], inputs: Mapping[str, Any]) -> None:
        stages.append(stage_of(inputs))
        observer.enter(stages[-1])

    def after(*_: Any) -> None:
        observer.leave(stages.pop())

    return [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]


@contextmanager
def _observed_calls(extractor: Any, observer: StageObserver) -> Iterator[None]:
    """Observe the calls of a feature extractor, which is no module and so has no hooks.

    Calls are looked up on the class: the object, whoever holds it, gets one of its own meanwhile.
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
