"""An interrupted run goes on as if it had not been, however it was interrupted, and never as another run."""

import json
import random
import resource
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Seq2SeqTrainer

from asr_doge.data import read_manifest, write_manifest
from asr_doge.errors import ConfigError, TrainingError
from asr_doge.models import load_model
from asr_doge.training import callbacks, training
from asr_doge.training.record import read_record
from asr_doge.training.resuming import is_complete
from tests.models import tiny
from tests.training.conftest import Copied, Finished, Settings, Train
from tests.training.runs import WEIGHTS, log_of, same_weights, train_and_be_killed


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Press Ctrl-C at the start of a step."""

    class Interrupt(callbacks.KeepBest):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == step:
                raise KeyboardInterrupt

    monkeypatch.setattr(training, "KeepBest", Interrupt)


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], object]) -> None:
    """Do something at the end of a step's work, before it is saved."""

    class Act(callbacks.MarkComplete):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step + 1 == step:
                action()

    monkeypatch.setattr(training, "MarkComplete", Act)


@pytest.mark.parametrize("choice", ["none", "lora"])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    run: Train, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    """Equality 5: interrupted within an epoch and between two checkpoints."""
    folder, whole = finished(train_language_model=choice)
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", train_language_model=choice)
    assert {path.name for path in (tmp_path / "cut").glob("checkpoint-*")} == {"checkpoint-4"}
    assert not (tmp_path / "cut" / "final").exists()
    resumed = run(tmp_path / "cut", train_language_model=choice, resume_from="latest")
    assert resumed.steps == whole.steps
    assert resumed.dev_cer == whole.dev_cer
    assert log_of(tmp_path / "cut") == log_of(folder)
    for name in ("final", "best", "checkpoint-12"):
        assert same_weights(tmp_path / "cut" / name, folder / name), name


def test_resuming_does_not_renew_the_patience(run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equality 5 where the run stops early: nothing is learnt, so only the first evaluation is ever the best."""
    options: dict[str, Any] = {"learning_rate": 0.0, "eval_steps": 2, "save_steps": 2, "patience": 3}
    whole = run(tmp_path / "whole", **options)
    assert whole.steps == 8
    with monkeypatch.context() as patch:
        stop_at(patch, 7)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", **options)
    assert run(tmp_path / "cut", resume_from="latest", **options).steps == whole.steps
    assert log_of(tmp_path / "cut") == log_of(tmp_path / "whole")


def test_patience_counts_no_evaluation_on_another_dev_set(run: Train, corpus: Path, tmp_path: Path) -> None:
    """Nothing is learnt: on a harder dev set every CER is above the best one on the first set."""
    options: dict[str, Any] = {"learning_rate": 0.0, "eval_steps": 2, "save_steps": 2, "patience": 2}
    dev_set = read_manifest(corpus / "dev_manifest.json")
    for name, text in (("easy", 40 * "long "), ("hard", "a")):  # the same hypotheses against more or fewer characters
        write_manifest(tmp_path / f"{name}.json", [replace(one, text=text, raw_text=text) for one in dev_set])
    before = run(tmp_path / "run", epochs=1, dev_manifest=str(tmp_path / "easy.json"), **options)
    options |= {"epochs": 4, "dev_manifest": str(tmp_path / "hard.json"), "allow_config_change": True}
    result = run(tmp_path / "run", resume_from=str(tmp_path / "run" / "checkpoint-2"), **options)
    assert result.dev_cer > before.dev_cer
    assert result.steps == 8  # the evaluation after step 4 is the first and the best, and two follow


def test_a_run_killed_again_and_again_ends_where_an_uninterrupted_one_does(
    run: Train, settings: Settings, tmp_path: Path
) -> None:
    """Equality 5, kill -9: at random steps, and at random writes, so that every file is caught half written."""
    options: dict[str, Any] = {"epochs": 4, "eval_steps": 2, "save_steps": 2, "eval_samples": 1}
    run(tmp_path / "whole", **options)
    chance = random.Random(0)
    config = settings(tmp_path / "killed", **options)
    kills = 0
    while train_and_be_killed(config, chance.randint(1, 3), chance.choice((0, 1)) * chance.randint(1, 40)) == -SIGKILL:
        kills += 1
        config = settings(tmp_path / "killed", resume_from="latest", **options)
        assert kills < 50, "it makes no headway"
    assert kills >= 8
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "whole")
    for name in ("final", "best", "checkpoint-12"):
        assert same_weights(tmp_path / "killed" / name, tmp_path / "whole" / name), name
    assert {path.name for path in (tmp_path / "killed").glob("checkpoint-*")} == {"checkpoint-10", "checkpoint-12"}


def test_ctrl_c_saves_the_step_and_the_run_goes_on_from_there(
    run: Train, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = finished(train_language_model="none")
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        at_step(patch, 6, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut")
    assert signal.getsignal(signal.SIGINT) == before
    assert {path.name for path in (tmp_path / "cut").glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-6"}
    run(tmp_path / "cut", resume_from="latest")
    for name in ("final", "best", "checkpoint-12"):
        assert same_weights(tmp_path / "cut" / name, folder / name), name


def test_a_full_disk_leaves_the_last_checkpoint_and_best_whole(
    run: Train,
    finished: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The system refuses to write more than a few kB, as a full disk refuses any; messages go to memory (`capsys`)."""
    folder, _ = finished(train_language_model="none")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with monkeypatch.context() as patch:
        at_step(patch, 7, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1])))
        try:
            with pytest.raises(
                TrainingError, match=r"cannot be written \(.*make room.* --resume_from latest"
            ) as caught:
                run(tmp_path / "cut")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    load_model(tmp_path / "cut" / "best", device="cpu")
    load_model(tmp_path / "cut" / "checkpoint-4", device="cpu")
    run(tmp_path / "cut", resume_from="latest")
    assert log_of(tmp_path / "cut") == log_of(folder)
    assert same_weights(tmp_path / "cut" / "final", folder / "final")


def test_a_checkpoint_that_is_written_again_is_not_whole_meanwhile(
    run: Train, copied: Copied, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gone on with from the last but one."""
    copied("run", eval_samples=2)

    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Seq2SeqTrainer, "_save_checkpoint", fail)
    with pytest.raises(TrainingError, match="checkpoint-12 cannot be written"):
        run(tmp_path / "run", eval_samples=2, resume_from=str(tmp_path / "run" / "checkpoint-8"))
    assert [is_complete(tmp_path / "run" / f"checkpoint-{step}") for step in (8, 12)] == [True, False]


def test_memory_that_runs_out_is_one_line(run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_step(monkeypatch, 3, lambda: torch.empty(1 << 60))
    with pytest.raises(
        TrainingError, match="memory of cpu with --batch_size 4: raise --gradient_accumulation"
    ) as caught:
        run(tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_run_is_not_resumed_with_other_settings_or_data(
    run: Train, corpus: Path, tmp_path: Path, stopped: Path
) -> None:
    fewer = tmp_path / "fewer.json"
    write_manifest(fewer, read_manifest(corpus / "train_manifest.json")[:8])
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    options: dict[str, Any] = {"resume_from": "latest", "epochs": 3, "learning_rate": 1.0, "train_manifest": str(fewer)}
    with pytest.raises(ConfigError) as caught:
        run(stopped, **options)
    assert str(caught.value).endswith(
        "that run had --learning_rate 0.01, now 1.0; --epochs 2, now 3; 12 train utterances, now 8 (or other ones)."
        " Give what it had, or --allow_config_change to go on all the same"
    )
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before
    copy = shutil.copytree(stopped, tmp_path / "copy")
    result = run(copy, allow_config_change=True, **options)
    assert result.steps == 6  # 2 an epoch now
    record = read_record(copy) or {}
    assert (record["resumed_from"], record["config"]["learning_rate"]) == ("checkpoint-6", 1.0)


def test_latest_is_of_the_run_that_went_back_and_not_of_what_it_left_behind(
    run: Train, copied: Copied, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gone on with from checkpoint 8 by another rate, and interrupted before the first save."""
    options = {"learning_rate": 3e-3, "eval_samples": 2, "allow_config_change": True}
    folder = copied("run", eval_samples=2)
    copied("whole", eval_samples=2)
    expected = run(tmp_path / "whole", resume_from=str(tmp_path / "whole" / "checkpoint-8"), **options)
    with monkeypatch.context() as patch:
        stop_at(patch, 10)
        with pytest.raises(KeyboardInterrupt):
            run(folder, resume_from=str(folder / "checkpoint-8"), **options)
    assert is_complete(folder / "checkpoint-12")  # of the first run, by the first rate
    record = read_record(folder) or {}
    assert (record["resumed_from"], record["config"]["learning_rate"]) == ("checkpoint-8", 3e-3)
    resumed = run(folder, resume_from="latest", **options)
    assert (read_record(folder) or {})["resumed_from"] == "checkpoint-8"
    assert same_weights(folder / "final", tmp_path / "whole" / "final")
    assert same_weights(folder / "best", tmp_path / "whole" / "best")
    assert resumed.dev_cer == expected.dev_cer == log_of(folder)[-1]["eval_cer"]
    assert not same_weights(folder / "final", tmp_path / "whole" / "checkpoint-8")
    told = {step: (read_record(folder / f"checkpoint-{step}") or {})["config"]["learning_rate"] for step in (8, 12)}
    assert told == {8: 1e-2, 12: 3e-3}  # each by the rate that its last steps were made with
    with pytest.raises(ConfigError, match=r"that run had --learning_rate 0.003, now 0.01"):
        run(folder, resume_from="latest", eval_samples=2)


def test_a_run_that_went_back_is_judged_by_its_own_evaluations_after_an_interruption_too(
    run: Train, copied: Copied, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"learning_rate": 3e-3, "eval_samples": 2, "allow_config_change": True}
    copied("cut", eval_samples=2)
    copied("whole", eval_samples=2)
    whole = run(tmp_path / "whole", resume_from=str(tmp_path / "whole" / "checkpoint-8"), epochs=6, **options)
    with monkeypatch.context() as patch:
        stop_at(patch, 14)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", resume_from=str(tmp_path / "cut" / "checkpoint-8"), epochs=6, **options)
    resumed = run(tmp_path / "cut", resume_from="latest", epochs=6, **options)
    record = read_record(tmp_path / "cut") or {}
    assert (record["resumed_from"], record["judged_from"]) == ("checkpoint-12", 8)
    assert resumed.dev_cer == whole.dev_cer
    assert same_weights(tmp_path / "cut" / "best", tmp_path / "whole" / "best")


@pytest.mark.parametrize("schedule", ["linear", "onecycle"])
def test_settings_that_were_allowed_to_change_hold_from_the_next_step_on(
    run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    """Another rate, another decay and more epochs: transformers would restore those of the checkpoint."""
    seen: dict[int, tuple[float, float]] = {}

    class Look(callbacks.MarkComplete):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            group = given["optimizer"].param_groups[0]
            seen[state.global_step] = group["lr"], group["weight_decay"]

    before: dict[str, Any] = {"schedule": schedule, "pct_start": 0.5, "eval_samples": 2, "weight_decay_scope": "all"}
    run(tmp_path / "run", epochs=2, weight_decay=0.01, **before)
    monkeypatch.setattr(training, "MarkComplete", Look)
    now: dict[str, Any] = {"epochs": 4, "learning_rate": 4e-3, "weight_decay": 0.2, "allow_config_change": True}
    run(tmp_path / "run", resume_from="latest", **before | now)
    # As a run has it that began so, of torch's own scheduler, or from 0 to 12 steps after a warm-up of 2.
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    one_cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=12, pct_start=0.5)
    for step in range(12):
        rate = one_cycle.get_last_lr()[0] if schedule == "onecycle" else 4e-3 * (12 - step) / 10
        if step >= 6:
            assert seen[step] == pytest.approx((rate, 0.2)), step
        optimizer.step()
        if step < 11:
            one_cycle.step()


def test_a_run_that_began_elsewhere_and_saved_nothing_does_not_start_again(
    run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: Path
) -> None:
    options: dict[str, Any] = {"epochs": 4, "eval_samples": 2, "allow_config_change": True}
    with monkeypatch.context() as patch:
        stop_at(patch, 7)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", resume_from=str(stopped / "checkpoint-6"), **options)
    with pytest.raises(ConfigError, match="has saved nothing since it went on from checkpoint-6: give that folder"):
        run(tmp_path / "run", resume_from="latest", **options)


def test_a_checkpoint_of_before_there_were_run_ids_is_resumed_with_a_word(
    run: Train, tmp_path: Path, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(stopped, tmp_path / "copy")
    for folder in copy.glob("checkpoint-*"):
        (folder / "run.json").unlink()
    record = json.loads((copy / "run.json").read_text())
    del record["run_id"], record["ancestors"], record["precision"]
    (copy / "run.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="that run had --epochs 2, now 3"):
        run(copy, resume_from="latest", epochs=3)
    assert run(copy, resume_from="latest", epochs=2).steps == 6
    assert "checkpoint-6: of an older version, without a run id; taken for one of this run" in capsys.readouterr().out
    assert run(copy, resume_from="latest", epochs=2).steps == 6  # and its record knows it now
    assert (read_record(copy) or {})["ancestors"] == [[None, 6]]


def test_the_same_data_elsewhere_is_the_same_data(run: Train, corpus: Path, tmp_path: Path, stopped: Path) -> None:
    copy, data = shutil.copytree(stopped, tmp_path / "copy"), shutil.copytree(corpus, tmp_path / "data")
    assert run(copy, resume_from="latest", epochs=2, data_dir=str(data), features_dir="").steps == 6


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"prompt_template": "what is said? "}, "--prompt_template"),
        ({"adapter_type": "linear"}, "--adapter_type"),
        ({"adapter_hidden_dim": 16, "adapter_output_norm": True}, "--adapter_hidden_dim, --adapter_output_norm"),
        ({"adapter_stack": 2}, "--adapter_stack"),
        ({"train_language_model": "lora"}, r"--lora_\*, --train_language_model"),
    ],
)
def test_a_run_is_not_resumed_as_another(
    run: Train, tmp_path: Path, stopped: Path, options: dict[str, Any], named: str
) -> None:
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=f"checkpoint-6: that run had another {named}; give what it had") as caught:
        run(stopped, resume_from="latest", epochs=2, **options)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("choice", ["none", "full"])
def test_a_run_is_not_resumed_with_other_parts(
    run: Train, copied: Copied, tmp_path: Path, granite_folder: Path, choice: str
) -> None:
    copied("run", train_language_model=choice)
    options: dict[str, Any] = {
        "resume_from": "latest",
        "epochs": 5,
        "train_language_model": choice,
        "allow_config_change": True,
    }
    encoder, text = tmp_path / "encoder", tmp_path / "text"
    shutil.copytree(granite_folder, encoder)
    weights = load_file(encoder / WEIGHTS)
    save_file({name: weight * 1.01 for name, weight in weights.items()}, encoder / WEIGHTS, {"format": "pt"})
    with pytest.raises(ConfigError, match="another --speech_encoder; give"):
        run(tmp_path / "run", speech_encoder=str(encoder), features_dir="", **options)
    tiny.save_language_model(tiny.llama_model(len(tiny.tokenizer())), text)
    with pytest.raises(ConfigError, match="another --language_model; give"):
        run(tmp_path / "run", language_model=str(text), **options)
    assert run(tmp_path / "run", **options).steps == 15


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stopped") / "run"


@pytest.fixture
def stopped(run: Train, stopped_run: Path) -> Path:
    """A run that can be resumed; not to be changed by a test."""
    if not stopped_run.exists():
        run(stopped_run, epochs=2)
    return stopped_run


def test_what_cannot_be_resumed_is_named(run: Train, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--resume_from latest: there is no checkpoint-N folder in .*nothing"):
        run(tmp_path / "nothing", resume_from="latest")
    run(tmp_path, epochs=1)
    for folder in (tmp_path / "missing", tmp_path / "best"):
        with pytest.raises(ConfigError, match=f"--resume_from {folder}: not a checkpoint-N folder"):
            run(tmp_path, resume_from=str(folder))
