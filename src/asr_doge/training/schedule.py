"""Compute learning rates by part of the model and by stage of the run.

Promises: in a stage, each part's rate rises from zero to its maximum over the warm-up and falls linearly to zero at the
end of the stage. A part whose rate is zero in a stage is not trained in it. The one-cycle schedule is torch's own, and
is only named here. It knows neither the model nor the Trainer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from asr_doge.errors import ConfigError
from asr_doge.training.configuration import TrainConfig

PARTS = ("adapter", "language_model", "encoder")
"""Attributes of `ASRDogeForConditionalGeneration`; every parameter belongs to one of them."""

STAGE_FIELDS = ("epochs", *(f"{part}_learning_rate" for part in PARTS))


@dataclass(frozen=True)
class Stage:
    """A number of epochs with the highest learning rate of each part."""

    epochs: float
    learning_rates: Mapping[str, float]


@dataclass(frozen=True)
class Schedule:
    """Consecutive stages, each with its own `warmup_steps`.

    With `pct_start` it is torch's `OneCycleLR` instead, with a single stage: the rate rises over that share of the
    steps.
    """

    stages: Sequence[Stage]
    warmup_steps: int
    pct_start: float | None = None

    @property
    def epochs(self) -> float:
        """Number of epochs of the whole run."""
        return sum(stage.epochs for stage in self.stages)

    @property
    def epochs_before_last(self) -> float:
        """Number of epochs before the last stage."""
        return sum(stage.epochs for stage in self.stages[:-1])

    def learning_rate(self, part: str, step: int, total_steps: int) -> float:
        """The rate of a part at a step, from 0, in a run of `total_steps`."""
        stage, start, end = self._stage(step, total_steps)
        passed, length = step - start, end - start
        if passed < self.warmup_steps:
            factor = passed / self.warmup_steps
        else:
            factor = max(0.0, (length - passed) / max(1, length - self.warmup_steps))
        return stage.learning_rates[part] * factor

    def trains(self, part: str, step: int, total_steps: int) -> bool:
        """Whether a part is trained in the stage of this step, even if its rate is zero at the step itself."""
        stage, _, _ = self._stage(step, total_steps)
        return len(self.stages) == 1 or stage.learning_rates[part] > 0

    def _stage(self, step: int, total_steps: int) -> tuple[Stage, int, int]:
        """The stage of a step, its first step, and the first step of the next stage."""
        passed, boundaries = 0.0, [0]
        for stage in self.stages:
            passed += stage.epochs
            boundaries.append(round(total_steps * passed / self.epochs))
        for stage, (start, end) in zip(self.stages, pairwise(boundaries), strict=True):
            if step < end:
                return stage, start, end
        return self.stages[-1], boundaries[-2], boundaries[-1]


def read_schedule(config: TrainConfig) -> Schedule:
    """The schedule that the flags describe.

    Raises:
        ConfigError: the stages are invalid.
    """
    if not config.stages:
        rates = {part: getattr(config, _flag(part)) for part in PARTS}
        rates = {part: config.learning_rate if rate is None else rate for part, rate in rates.items()}
        pct_start = config.pct_start if config.schedule == "onecycle" else None
        return Schedule([Stage(config.epochs, rates)], config.warmup_steps, pct_start)
    if config.schedule == "onecycle":
        raise ConfigError("--schedule onecycle is of one stage: leave `stages` out, or give --schedule linear")
    stages = []
    for number, fields in enumerate(config.stages, start=1):
        if unknown := sorted(fields.keys() - STAGE_FIELDS):
            raise ConfigError(f"stages: {unknown[0]} of stage {number} is unknown; give {', '.join(STAGE_FIELDS)}")
        if fields.get("epochs", 0) <= 0 or any(value < 0 for value in fields.values()):
            raise ConfigError(f"stages: stage {number} needs epochs above 0, and learning rates that are not negative")
        stages.append(Stage(fields["epochs"], {part: fields.get(f"{part}_learning_rate", 0.0) for part in PARTS}))
    return Schedule(stages, config.warmup_steps)


def _flag(part: str) -> str:
    return "learning_rate" if part == "adapter" else f"{part}_learning_rate"
