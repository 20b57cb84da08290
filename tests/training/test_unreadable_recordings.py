"""Recordings that cannot be read are named and left out, and change nothing else."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from asr_doge.data import read_manifest, write_manifest
from asr_doge.data.feature_cache import FeatureCache
from asr_doge.errors import AudioError
from asr_doge.inference.configuration import FeaturesConfig
from asr_doge.inference.features import compute_features
from asr_doge.models import assemble_model
from asr_doge.training.datasets import (
    CachedSpeechDataset,
    Example,
    SpeechDataset,
    UtteranceDataset,
    collate_examples,
)
from asr_doge.training.record import read_record
from tests import speech
from tests.models import tiny
from tests.training.conftest import Train
from tests.training.test_resuming import at_step


def test_training_goes_on_without_what_features_could_not_read(
    run: Train, granite_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = speech.write_corpus(tmp_path / "data", train=5, dev=2, test=2)
    broken = read_manifest(data / "train_manifest.json")[1]
    broken.audio_path.write_bytes(b"RIFF, but no sound")
    report = compute_features(FeaturesConfig(str(data), speech_encoder=str(granite_folder), device="cpu"))
    result = run(tmp_path / "run", data_dir=str(data), features_dir=str(report.folder), epochs=1)
    assert result.steps == 1
    assert "left out: 1 of 5 utterances that cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize("workers", [0, 1])
def test_recordings_that_cannot_be_read_are_named_and_left_out(
    run: Train, tmp_path: Path, corpus: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(corpus, tmp_path / "data")
    broken = [data / "audio" / name for name in ("train-3.wav", "dev-1.wav")]
    for path in broken:
        path.write_bytes(b"RIFF, but no sound")
    short = speech.write_wav(data / "audio" / "train-5.wav", tiny.random_waveform(0.05))
    options: dict[str, Any] = {"data_dir": str(data), "features_dir": "", "num_workers": workers}
    assert run(tmp_path / "run", epochs=2, **options).steps == 6
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out: ")]
    assert len(lines) == 3  # once each, in two epochs
    for path in (*broken, short):
        assert sum(str(path) in line for line in lines) == 1
    assert (read_record(tmp_path / "run") or {})["result"]["unreadable"] == 3
    with pytest.raises(AudioError, match=r"that makes 3 recordings .* more than --max_unreadable 2") as caught:
        run(tmp_path / "fewer", max_unreadable=2, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("batch", [{"batch_size": 1}, {"batch_seconds": 0.5}], ids=str)
def test_a_recording_that_cannot_be_read_may_be_a_whole_batch(
    run: Train, tmp_path: Path, corpus: Path, batch: dict[str, Any]
) -> None:
    data = shutil.copytree(corpus, tmp_path / "data")
    write_manifest(data / "train_manifest.json", read_manifest(data / "train_manifest.json")[:4])
    (data / "audio" / "train-3.wav").unlink()
    result = run(tmp_path / "run", data_dir=str(data), features_dir="", epochs=1, **batch)
    assert result.steps == 4
    assert (read_record(tmp_path / "run") or {})["result"]["unreadable"] == 1


@pytest.mark.parametrize("source", ["computed", "cached"])
def test_a_blank_row_changes_nothing(
    corpus: Path, cache: Path, granite_folder: Path, doge_folder: Path, source: str
) -> None:
    loaded = assemble_model(
        granite_folder, doge_folder, device="cpu", dtype=torch.float64, prompt_template="the {language} sea: "
    )
    utterances = [replace(one, language="de") for one in read_manifest(corpus / "train_manifest.json")[:2]]
    dataset: UtteranceDataset = SpeechDataset(utterances, loaded.processor)
    if source == "cached":
        dataset = CachedSpeechDataset(utterances, loaded.processor, FeatureCache.open(cache))

    def loss_and_gradient(examples: list[Example]) -> tuple[float, Tensor]:
        loaded.model.zero_grad()
        loss = loaded.model(**collate_examples(examples)).loss
        loss.backward()
        gradients = [p.grad for p in loaded.model.adapter.parameters() if p.grad is not None]
        return float(loss.detach()), torch.cat([gradient.flatten() for gradient in gradients])

    loss, gradient = loss_and_gradient([dataset[0], dataset[1]])
    with_blank, same_gradient = loss_and_gradient([dataset[0], dataset.blank(), dataset[1]])
    assert with_blank == pytest.approx(loss, rel=1e-6)
    assert torch.allclose(same_gradient, gradient, rtol=1e-6)
    assert gradient.any()
    nothing, no_gradient = loss_and_gradient([dataset.blank()])
    assert nothing == 0
    assert not no_gradient.any()


def test_a_dev_recording_that_goes_amiss_is_left_out_of_evaluations(
    run: Train, tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(corpus, tmp_path / "data")
    at_step(monkeypatch, 2, (data / "audio" / "dev-1.wav").unlink)
    run(tmp_path / "run", data_dir=str(data), features_dir="", epochs=2, eval_steps=1, save_steps=1, batch_size=12)
    assert capsys.readouterr().err.count("dev-1.wav does not exist") == 1
    heard = [json.loads(line)["id"] for line in (tmp_path / "run" / "hypotheses.jsonl").read_text().splitlines()]
    assert sorted(heard) == ["dev-0", "dev-2", "dev-3"]
