"""Several processes train as one does."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from asr_doge.data import read_manifest, write_manifest
from asr_doge.errors import ConfigError
from asr_doge.models import ASRDogeForConditionalGeneration, load_model
from asr_doge.training.record import read_record
from tests.training.conftest import Settings, Train
from tests.training.runs import WEIGHTS, log_of, same_weights, torchrun, train_together


def test_two_processes_are_one(run: Train, settings: Settings, corpus: Path, tmp_path: Path) -> None:
    """Equality 6, by torchrun and the command, with evaluation shared out.

    Half of the recordings cannot be read: some processes are left with nothing, in some steps, and go on all the same.
    """
    data = shutil.copytree(corpus, tmp_path / "data")
    for number in range(0, 12, 2):
        (data / "audio" / f"train-{number}.wav").write_bytes(b"RIFF, but no sound")
    options = {"epochs": 2, "eval_steps": 6, "save_steps": 6, "eval_samples": 3, "train_language_model": "lora"}
    options |= {"data_dir": str(data), "features_dir": ""}
    one = run(tmp_path / "one", **options)
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(asdict(settings(tmp_path / "two", **options))))
    printed = torchrun(["train", "--config", str(tmp_path / "two.yaml")], tmp_path)
    assert printed.count("best dev CER") == 1
    for alone, shared in zip(log_of(tmp_path / "one"), log_of(tmp_path / "two"), strict=True):
        assert shared == pytest.approx(alone, rel=1e-4)
    for name in ("best", "final"):
        alone_weights, shared_weights = (load_file(tmp_path / run / name / WEIGHTS) for run in ("one", "two"))
        assert alone_weights.keys() == shared_weights.keys()
        for key, weight in alone_weights.items():
            assert torch.allclose(shared_weights[key], weight, rtol=1e-3, atol=1e-5), key
    record = read_record(tmp_path / "two") or {}
    assert record["machine"]["processes"] == 2
    assert record["result"]["steps"] == one.steps
    assert record["result"]["unreadable"] == 6  # of both processes, each of which met a part of them at first


@pytest.mark.parametrize("count", [9, 10, 11])
def test_two_processes_are_one_whatever_the_last_batch_holds(
    run: Train, settings: Settings, corpus: Path, tmp_path: Path, count: int
) -> None:
    """Equality 6 on a partial batch of 1 to 3 of 4, where one process may have nothing of it; in parts too."""
    manifest = corpus.with_name(f"{count}.json")
    write_manifest(manifest, read_manifest(corpus / "train_manifest.json")[:count])
    options: dict[str, Any] = {"train_manifest": str(manifest), "epochs": 2, "eval_steps": 3, "save_steps": 3}
    options |= {"eval_samples": 1}
    run(tmp_path / "one", **options)
    run(tmp_path / "parts", gradient_accumulation_steps=4, **options)
    train_together(settings(tmp_path / "two", **options))
    for name in ("parts", "two"):
        for alone, shared in zip(log_of(tmp_path / "one"), log_of(tmp_path / name), strict=True):
            assert shared == pytest.approx(alone, rel=1e-4)


def test_processes_that_share_the_weights_are_one(run: Train, settings: Settings, tmp_path: Path) -> None:
    """FSDP: equality 6, and equality 5 from a checkpoint that it wrote."""
    options: dict[str, Any] = {"epochs": 2, "eval_steps": 3, "save_steps": 3, "train_language_model": "lora"}
    run(tmp_path / "one", **options)
    train_together(settings(tmp_path / "two", fsdp=True, **options))
    for alone, shared in zip(log_of(tmp_path / "one"), log_of(tmp_path / "two"), strict=True):
        assert shared == pytest.approx(alone, rel=1e-3)
    for name in ("best", "final", "checkpoint-3"):
        alone_weights, shared_weights = (load_file(tmp_path / run / name / WEIGHTS) for run in ("one", "two"))
        assert alone_weights.keys() == shared_weights.keys()
        for key, weight in alone_weights.items():
            assert torch.allclose(shared_weights[key], weight, rtol=1e-3, atol=1e-5), key
    assert load_model(tmp_path / "two" / "best", device="cpu")

    shutil.copytree(tmp_path / "two", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoint-6")
    train_together(settings(tmp_path / "cut", fsdp=True, resume_from="latest", **options))
    assert log_of(tmp_path / "cut") == log_of(tmp_path / "two")
    assert same_weights(tmp_path / "cut" / "final", tmp_path / "two" / "final")
    with pytest.raises(ConfigError, match="that run was with --fsdp; give what it had"):
        run(tmp_path / "cut", resume_from="latest", **options)


@pytest.mark.usefixtures("run")  # for its short texts
def test_processes_that_share_the_weights_compute_in_half_precision(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training and in evaluations, as one process does."""
    forward = ASRDogeForConditionalGeneration.forward

    def checked(model: ASRDogeForConditionalGeneration, **inputs: Any) -> Any:
        output = forward(model, **inputs)
        assert output.logits is not None
        assert output.logits.dtype == torch.bfloat16
        return output

    monkeypatch.setattr(ASRDogeForConditionalGeneration, "forward", checked)
    train_together(settings(tmp_path / "run", fsdp=True, dtype="bf16", epochs=1, eval_samples=2))


def test_one_process_cannot_share_weights_out(run: Train, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--fsdp shares weights out over several processes: start them by torchrun"):
        run(tmp_path / "run", fsdp=True)


def test_a_batch_that_cannot_be_shared_out_is_refused(
    run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"--batch_size 6 cannot be cut into 4 equal parts .*: give a multiple of 4"):
        run(tmp_path / "run", batch_size=6, gradient_accumulation_steps=2)


def test_a_batch_in_parts_is_the_same_batch(run: Train, tmp_path: Path) -> None:
    run(tmp_path / "whole", epochs=1)
    run(tmp_path / "parts", epochs=1, gradient_accumulation_steps=2)
    whole, parts = (load_file(tmp_path / name / "final" / WEIGHTS) for name in ("whole", "parts"))
    assert all(torch.allclose(parts[key], weight, rtol=1e-3, atol=1e-5) for key, weight in whole.items())
