"""Learning rates rise, fall and change hands as the stages say."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from asr_doge.errors import ConfigError
from asr_doge.training import training
from asr_doge.training.configuration import TrainConfig
from asr_doge.training.schedule import PARTS, Schedule, Stage, read_schedule
from tests.training.conftest import Train
from tests.training.runs import WEIGHTS, log_of, same_weights
from tests.training.test_resuming import stop_at


def test_one_stage_rises_and_falls() -> None:
    schedule = read_schedule(TrainConfig(learning_rate=2e-3, warmup_steps=10, epochs=1))
    rates = [schedule.learning_rate("adapter", step, 110) for step in (0, 5, 10, 60, 110)]
    assert rates == pytest.approx([0, 1e-3, 2e-3, 1e-3, 0])


def test_parts_have_rates_of_their_own() -> None:
    schedule = read_schedule(TrainConfig(learning_rate=2e-3, language_model_learning_rate=1e-4, warmup_steps=0))
    rates = {part: schedule.learning_rate(part, 0, 100) for part in PARTS}
    assert rates == {"adapter": 2e-3, "language_model": 1e-4, "encoder": 2e-3}


def test_stages_follow_each_other() -> None:
    schedule = read_schedule(
        TrainConfig(
            warmup_steps=0,
            stages=[
                {"epochs": 1, "adapter_learning_rate": 1e-2},
                {"epochs": 3, "adapter_learning_rate": 1e-3, "language_model_learning_rate": 1e-4},
            ],
        )
    )
    assert (schedule.epochs, schedule.epochs_before_last) == (4, 1)
    assert [schedule.learning_rate("adapter", step, 400) for step in (0, 50, 100, 250)] == pytest.approx(
        [1e-2, 5e-3, 1e-3, 5e-4]
    )
    assert [schedule.learning_rate("language_model", step, 400) for step in (0, 99, 100)] == pytest.approx([0, 0, 1e-4])
    assert [schedule.trains("language_model", step, 400) for step in (0, 99, 100, 400)] == [False, False, True, True]


@given(
    epochs=st.lists(st.floats(0.1, 5), min_size=1, max_size=4),
    steps=st.integers(4, 500),
    warmup=st.integers(0, 50),
)
def test_rates_stay_between_zero_and_the_highest(epochs: list[float], steps: int, warmup: int) -> None:
    schedule = Schedule([Stage(count, dict.fromkeys(PARTS, 0.1)) for count in epochs], warmup)
    rates = [schedule.learning_rate("adapter", step, steps) for step in range(steps + 2)]
    assert all(0 <= rate <= 0.1 for rate in rates)
    assert rates[steps] == 0 or steps - round(steps * sum(epochs[:-1]) / sum(epochs)) < warmup


def one_cycle(step: int, steps: int, share: float, highest: float) -> float:
    """Smith and Topin's one cycle as PyTorch documents its defaults: from a 25th up, then down to a 250,000th."""
    top = share * steps - 1
    lowest = highest / 25

    def along_cosine(start: float, end: float, part: float) -> float:
        return end + (start - end) / 2 * (1 + math.cos(math.pi * part))

    if step <= top:
        return along_cosine(lowest, highest, step / top)
    return along_cosine(highest, lowest / 1e4, (step - top) / (steps - 1 - top))


def test_the_published_schedule_is_one_cycle_over_all_steps(run: Train, tmp_path: Path) -> None:
    """And AdamW decays everything, as torch's does by itself."""
    options: dict[str, Any] = {"schedule": "onecycle", "pct_start": 0.5, "weight_decay_scope": "all", "epochs": 2}
    run(tmp_path, eval_steps=1, save_steps=6, eval_samples=1, train_language_model="full", **options)
    rates = [entry["learning_rate"] for entry in log_of(tmp_path) if "learning_rate" in entry]
    assert rates == pytest.approx([one_cycle(step, 6, 0.5, 1e-2) for step in range(6)])
    groups = torch.load(tmp_path / "checkpoint-6" / "optimizer.pt")["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.01] * len(groups)
    assert {group["part"] for group in groups} == {"adapter", "language_model"}
    assert all(0.85 <= group["betas"][0] <= 0.95 for group in groups)


def test_by_default_biases_and_norms_do_not_decay(run: Train, tmp_path: Path) -> None:
    run(tmp_path, epochs=1, eval_steps=3, save_steps=3, eval_samples=1)
    groups = torch.load(tmp_path / "checkpoint-3" / "optimizer.pt")["param_groups"]
    assert sorted((group["weight_decay"], len(group["params"])) for group in groups) == [(0.0, 2), (0.01, 2)]


def test_a_run_by_one_cycle_is_resumed(run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equality 5: rate and momentum go on where they were."""
    options: dict[str, Any] = {
        "schedule": "onecycle",
        "pct_start": 0.5,
        "epochs": 2,
        "eval_steps": 2,
        "save_steps": 2,
        "eval_samples": 1,
    }
    run(tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", **options)
    run(tmp_path / "cut", resume_from="latest", **options)
    assert log_of(tmp_path / "cut") == log_of(tmp_path / "whole")
    assert same_weights(tmp_path / "cut" / "final", tmp_path / "whole" / "final")


def test_one_cycle_of_too_few_steps_is_refused(run: Train, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"--schedule onecycle cannot rise over a share of 0.1 of 3 steps: train longer"
    ):
        run(tmp_path, schedule="onecycle", epochs=1)


def test_one_cycle_has_no_stages() -> None:
    config = TrainConfig(schedule="onecycle", stages=[{"epochs": 1, "adapter_learning_rate": 1e-3}])
    with pytest.raises(ConfigError, match="--schedule onecycle is of one stage: leave `stages` out"):
        read_schedule(config)


@pytest.mark.parametrize(
    ("stage", "named"),
    [
        ({"epochs": 1, "adapter": 1e-3}, "adapter of stage 2 is unknown; give epochs, adapter_learning_rate"),
        ({"adapter_learning_rate": 1e-3}, "stage 2 needs epochs above 0"),
        ({"epochs": 1, "adapter_learning_rate": -1}, "not negative"),
    ],
)
def test_stages_that_make_no_sense_are_refused(stage: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        read_schedule(TrainConfig(stages=[{"epochs": 1, "adapter_learning_rate": 1e-3}, stage]))


def test_a_part_stays_as_it_was_until_its_stage(run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "KEPT_CHECKPOINTS", 10)
    stages = [
        {"epochs": 2, "adapter_learning_rate": 1e-2},
        {"epochs": 2, "language_model_learning_rate": 1e-2},
    ]
    run(tmp_path, stages=stages, train_language_model="lora", eval_steps=3, save_steps=3)
    middle, end = (load_file(tmp_path / f"checkpoint-{step}" / WEIGHTS) for step in (6, 12))
    updates = [name for name in middle if ".lora_B." in name]
    assert updates
    assert all(not middle[name].any() and end[name].any() for name in updates)
    assert all(torch.equal(middle[name], end[name]) for name in middle if name.startswith("adapter."))


def test_patience_counts_in_the_last_stage_only(run: Train, tmp_path: Path) -> None:
    """Nothing is learnt, so that only the first evaluation is ever the best."""
    stages = [{"epochs": 2, "adapter_learning_rate": 0.0}, {"epochs": 3, "adapter_learning_rate": 0.0}]
    assert run(tmp_path, stages=stages, eval_steps=1, save_steps=1, patience=2).steps == 6 + 2
