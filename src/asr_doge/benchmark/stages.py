"""Watching the stages of a transcription from outside, as it runs for any user.

Promises: what is watched is the very model and the very calls of `asr_doge.inference`, by hooks that are gone
afterwards, so that nothing measured is measured on a copy. Stages do not overlap.
It does not know what is measured at their ends (see `speed` and `memory`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol, get_args

from torch import nn

from asr_doge.models import LoadedModel

Stage = Literal["audio", "log_mel", "encoder", "adapter", "prefill", "generation"]
"""audio: file to waveform. prefill: the language model's first pass, over prompt and speech. generation: its others."""
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
    current: Stage = "prefill"

    def enter_language_model() -> Stage:
        """A pass after the adapter's is the first over new speech."""
        nonlocal current
        stage, current = current, "generation"
        return stage

    def enter_adapter() -> Stage:
        nonlocal current
        current = "prefill"
        return "adapter"

    hooks = [
        *_hooks(model.encoder, lambda: "encoder", observer),
        *_hooks(model.adapter, enter_adapter, observer),
        *_hooks(model.language_model, enter_language_model, observer),
    ]
    try:
        with _observed_calls(loaded.processor.feature_extractor, observer):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _hooks(module: nn.Module, begin: Any, observer: StageObserver) -> list[Any]:
    """Hooks before and after a module's passes; `begin` says which stage a pass is."""
    stages: list[Stage] = []

    def before(*_: Any) -> None:
        stages.append(begin())
        observer.enter(stages[-1])

    def after(*_: Any) -> None:
        observer.leave(stages.pop())

    return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


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
