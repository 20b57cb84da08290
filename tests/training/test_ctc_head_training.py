"""`pretrain ctc_head`: learns, resumes to the same weights, and its folder is an encoder that has CTC."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from asr_doge.cli import main
from asr_doge.errors import ConfigError, DataError
from asr_doge.inference.configuration import FeaturesConfig
from asr_doge.inference.features import compute_features
from asr_doge.models import load_encoder_alone
from asr_doge.training.ctc_head_training import CTCHeadResult, mean_weights, pretrain_ctc_head
from asr_doge.training.pretraining_configuration import PretrainCTCHeadConfig
from tests.training.runs import log_of, same_weights

Pretrain = Callable[..., CTCHeadResult]


@pytest.fixture(scope="module")
def clip_cache(corpus: Path, whisper_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus's features by tiny Whisper at clip length, with a varied copy of each clip."""
    folder = tmp_path_factory.mktemp("clip") / "features"
    options = FeaturesConfig(
        str(corpus), str(folder), str(whisper_folder), "clip", dtype="bf16", augment_copies=1, device="cpu"
    )
    return Path(compute_features(options).folder)


@pytest.fixture(scope="module")
def pretrain(corpus: Path, clip_cache: Path, whisper_folder: Path) -> Pretrain:
    def run(output_dir: Path, **options: Any) -> CTCHeadResult:
        defaults: dict[str, Any] = {
            "data_dir": str(corpus),
            "features_dir": str(clip_cache),
            "speech_encoder": str(whisper_folder),
            "encoder_window": "clip",
            "hidden_dim": 16,
            "layers": 1,
            "stack": 1,
            "batch_seconds": 8,
            "warmup_steps": 2,
            "eval_steps": 4,
            "average": 2,
            "epochs": 4,
            "device": "cpu",
        }
        return pretrain_ctc_head(PretrainCTCHeadConfig(**defaults | {"output_dir": str(output_dir)} | options))

    return run


@pytest.fixture(scope="module")
def finished(pretrain: Pretrain, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CTCHeadResult]:
    """The folder and the result of a run; not to be changed by a test."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, pretrain(folder)


def test_it_learns_and_leaves_an_encoder_that_has_ctc(pretrain: Pretrain, corpus: Path, tmp_path: Path) -> None:
    result = pretrain(tmp_path, epochs=20)
    losses = [entry["loss"] for entry in log_of(tmp_path) if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["result"]["dev_cer"] == result.dev_cer
    speech_encoder = load_encoder_alone(result.best_dir, device="cpu")
    assert speech_encoder.encoder.has_ctc
    assert (tmp_path / "hypotheses.tsv").read_text().count("\n") == 4
    assert main(["transcribe", "--model", str(result.best_dir), "--decoder", "ctc", str(corpus)]) == 0


@pytest.mark.parametrize("kind", ["blstm", "conformer"])
def test_a_resumed_run_is_the_uninterrupted_one(
    pretrain: Pretrain, finished: tuple[Path, CTCHeadResult], tmp_path: Path, kind: str
) -> None:
    folder, whole = finished
    if kind != PretrainCTCHeadConfig.head_type:
        folder, whole = tmp_path / "whole", pretrain(tmp_path / "whole", head_type=kind)
    shutil.copytree(folder, tmp_path / "resumed")
    newest = max((tmp_path / "resumed").glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    shutil.rmtree(newest)
    shutil.rmtree(tmp_path / "resumed" / "best")
    resumed = pretrain(tmp_path / "resumed", head_type=kind, resume_from="latest")
    assert log_of(tmp_path / "resumed") == log_of(folder)
    assert same_weights(newest, folder / newest.name)
    assert (resumed.steps, resumed.dev_cer) == (whole.steps, whole.dev_cer)


def test_a_run_is_gone_on_with_only_as_it_began(pretrain: Pretrain, finished: tuple[Path, CTCHeadResult]) -> None:
    folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(ConfigError, match="holds the checkpoints of another run"):
        pretrain(folder)
    with pytest.raises(ConfigError, match=r"that run had --learning_rate 0\.002, now 0\.1"):
        pretrain(folder, resume_from="latest", learning_rate=0.1)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_head_can_be_gone_on_with_on_other_data(
    pretrain: Pretrain, finished: tuple[Path, CTCHeadResult], tmp_path: Path
) -> None:
    _, first = finished
    again = pretrain(tmp_path / "again", speech_encoder=str(first.best_dir), encoder_window=None, learning_rate=0.0)
    before, after = (load_file(folder / "model.safetensors") for folder in (first.best_dir, again.best_dir))
    learnt = [name for name in before if "running_" not in name and "num_batches" not in name]
    assert all(torch.equal(before[name], after[name]) for name in learnt)


def test_bpe_is_learnt_from_the_training_texts(pretrain: Pretrain, tmp_path: Path) -> None:
    result = pretrain(tmp_path, epochs=1, units="bpe", vocab_size=24)
    config = json.loads((result.best_dir / "config.json").read_text())
    assert config["ctc_head"]["merges"]
    assert len(config["ctc_head"]["tokens"]) <= 24


def test_features_of_another_window_are_refused(pretrain: Pretrain, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is of another encoder"):
        pretrain(tmp_path, encoder_window="full")


def test_the_mean_of_weights() -> None:
    states = [
        {"w": torch.tensor([1.0, 4.0]), "n": torch.tensor(3)},
        {"w": torch.tensor([3.0, 8.0]), "n": torch.tensor(5)},
    ]
    mean = mean_weights(states)
    assert mean["w"].tolist() == [2.0, 6.0]
    assert mean["n"].item() == 5
