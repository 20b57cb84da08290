"""What a run cannot work with is named in one line, before anything is trained."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asr_doge.data import read_manifest, write_manifest
from asr_doge.errors import CheckpointError, ConfigError, DataError
from asr_doge.training import checking
from tests import speech
from tests.models import tiny
from tests.training.conftest import Train


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"eval_steps": 4, "save_steps": 6}, "save_steps"),
        ({"eval_steps": 0}, "eval_steps"),
        ({"save_steps": 0}, "save_steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"epochs": 0}, "epochs"),
        ({"epochs": -1}, "epochs"),
        ({"patience": 0}, "patience"),
        ({"eval_samples": 0}, "eval_samples"),
        ({"num_workers": -1}, "num_workers"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"adapter_hidden_dim": 0}, "adapter_hidden_dim"),
        ({"adapter_type": "none"}, "adapter_type"),
        ({"prompt_template": "in {language}: "}, "--prompt_template names the language, which no utterance"),
        ({"prompt_template": "in {lang}: "}, "prompt_template 'in {lang}: ': only"),
        ({"train_language_model": "some"}, "train_language_model"),
        ({"device": "abacus"}, "device"),
    ],
)
def test_settings_that_cannot_work_are_refused(run: Train, tmp_path: Path, options: dict[str, Any], flag: str) -> None:
    with pytest.raises(ConfigError, match=flag) as caught:
        run(tmp_path / "run", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_logger_that_is_not_installed_is_named(run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"--wandb_project needs the package wandb: pip install 'asr-doge\[wandb\]'"):
        run(tmp_path / "run", wandb_project="speech")
    assert not (tmp_path / "run").exists()


def test_what_is_missing_is_named(run: Train, tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere/train_manifest.json does not exist"):
        run(tmp_path / "run", data_dir=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"nothing.json does not exist"):
        run(tmp_path / "run", dev_manifest=str(tmp_path / "nothing.json"))
    with pytest.raises(DataError, match="no feature cache"):
        run(tmp_path / "run", features_dir=str(tmp_path))
    with pytest.raises(CheckpointError, match="no-model"):
        run(tmp_path / "run", language_model=str(tmp_path / "no-model"))


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_loaded(run: Train, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/run cannot be made: .*/file is a file; choose another folder"):
        run(tmp_path / "file" / "run", language_model="not/looked-at")


def test_a_dev_set_without_utterances_is_named(run: Train, tmp_path: Path) -> None:
    (tmp_path / "dev.json").touch()
    with pytest.raises(DataError, match=r"dev.json holds no utterances"):
        run(tmp_path / "run", dev_manifest=str(tmp_path / "dev.json"))


def test_texts_longer_than_the_language_model_reads_are_named(run: Train, tmp_path: Path, corpus: Path) -> None:
    train = read_manifest(corpus / "train_manifest.json")
    train[5] = replace(train[5], text="the quick fox " * 500)
    write_manifest(tmp_path / "train.json", train)
    with pytest.raises(DataError, match=r"^1 of 16 .* the 2,048 positions .*\(the first: 'train-5', \d,\d+\): leave"):
        run(tmp_path / "run", train_manifest=str(tmp_path / "train.json"))
    assert not (tmp_path / "run").exists()


def test_features_of_another_encoder_are_refused(run: Train, tmp_path: Path, granite_folder: Path) -> None:
    other = tmp_path / "encoder"
    tiny.granite_model(seed=9).save_pretrained(other)
    with pytest.raises(DataError, match=r"is of another encoder \(encoder_fingerprint .* with --overwrite"):
        run(tmp_path / "run", speech_encoder=str(other))


def test_features_that_are_missing_or_stale_are_refused(run: Train, tmp_path: Path, corpus: Path, cache: Path) -> None:
    data = shutil.copytree(corpus, tmp_path / "data")
    speech.write_wav(data / "audio" / "train-3.wav", tiny.random_waveform(0.7, seed=99))
    with pytest.raises(DataError, match=r"is older than the recordings of 1 of 12 utterances \(the first: 'train-3'\)"):
        run(tmp_path / "run", data_dir=str(data), features_dir=str(cache))
    train = read_manifest(corpus / "train_manifest.json")
    write_manifest(tmp_path / "more.json", [*train, *speech.utterances(tmp_path, "more", 2)])
    with pytest.raises(DataError, match=r"lacks 2 of 14 utterances \(the first: 'more-0'\)"):
        run(tmp_path / "run", train_manifest=str(tmp_path / "more.json"))
