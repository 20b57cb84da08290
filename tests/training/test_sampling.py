"""Batches by seconds, found caches and variations: the same over a resume, and refused where they make no sense."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches

from asr_doge.data import read_manifest
from asr_doge.data.batching import LengthBatches
from asr_doge.data.feature_cache import FeatureCache
from asr_doge.errors import ConfigError, DataError
from asr_doge.inference.configuration import FeaturesConfig
from asr_doge.inference.features import compute_features
from asr_doge.models import LoadedModel, assemble_model
from asr_doge.training import training
from asr_doge.training.datasets import CachedSpeechDataset, Example, SpeechDataset
from tests.training.conftest import Train
from tests.training.runs import log_of, same_weights
from tests.training.test_resuming import stop_at


@pytest.fixture(scope="module")
def loaded(granite_folder: Path, doge_folder: Path) -> LoadedModel:
    return assemble_model(granite_folder, doge_folder, device="cpu")


@pytest.mark.parametrize("options", [{"frame_dropping": 0.2, "embedding_noise": 0.1}, {"features_dir": ""}], ids=str)
def test_batches_by_seconds_are_resumed_within_an_epoch(
    run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: Any
) -> None:
    """Equality 5, with everything that is drawn anew each epoch."""
    options = options | {"batch_seconds": 5.0, "epochs": 3, "eval_steps": 2, "save_steps": 2}
    options |= {"augment": True} if options.get("features_dir") == "" else {}
    whole = run(tmp_path / "whole", **options)
    assert "of at most 5 s, " in capsys.readouterr().out
    steps = whole.steps // 3
    assert steps > 2
    with monkeypatch.context() as patch:
        stop_at(patch, steps + 2)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", **options)
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        with pytest.raises(ConfigError, match="1 processes, now 2, with --batch_seconds"):
            run(tmp_path / "cut", resume_from="latest", **options)
    resumed = run(tmp_path / "cut", resume_from="latest", **options)
    assert resumed.steps == whole.steps
    assert log_of(tmp_path / "cut") == log_of(tmp_path / "whole")
    assert same_weights(resumed.final_dir, whole.final_dir)


def test_a_cache_beside_the_manifests_is_found_and_named(
    run: Train, corpus: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cache == corpus / "features"
    run(tmp_path / "found", features_dir=None, epochs=1)
    assert f"features: from the cache {cache}" in capsys.readouterr().out
    run(tmp_path / "given", epochs=1)
    assert same_weights(tmp_path / "found" / "final", tmp_path / "given" / "final")
    run(tmp_path / "none", features_dir="", epochs=1)
    assert "features: computed at every step" in capsys.readouterr().out
    run(tmp_path / "augmented", features_dir=None, augment=True, epochs=1)  # which no cache could be
    assert "features: computed at every step" in capsys.readouterr().out


def test_a_found_cache_that_does_not_fit_is_not_passed_over_in_silence(
    run: Train, whisper_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r'is of another encoder .*; or give --features_dir ""'):
        run(tmp_path, features_dir=None, speech_encoder=str(whisper_folder), adapter_stack=5)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"augment": True}, "--augment varies recordings, and a feature cache holds none: make copies"),
        ({"frame_dropping": 0.1, "features_dir": ""}, "--frame_dropping varies cached features: run"),
        ({"embedding_noise": 0.1, "features_dir": ""}, "--embedding_noise varies cached features: run"),
        (
            {"frame_dropping": 0.1, "train_encoder": "lora"},
            "--frame_dropping varies cached features, and --train_encoder lora uses none: leave one of them out",
        ),
        ({"frame_dropping": 1.0}, "--frame_dropping 1.0 cannot be used"),
        ({"embedding_noise": -1.0}, "--embedding_noise -1.0 cannot be used"),
        ({"batch_seconds": 0.0}, "--batch_seconds 0.0 cannot be used"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(run: Train, tmp_path: Path, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        run(tmp_path, **options)


def examples(dataset: Any, epoch: int) -> list[Example]:
    dataset.set_epoch(epoch)
    return [dataset[index] for index in range(len(dataset))]


def same(a: list[Example], b: list[Example]) -> bool:
    return all(
        x[name].shape == y[name].shape and torch.equal(x[name], y[name])
        for x, y in zip(a, b, strict=True)
        for name in x
    )


def test_recordings_are_varied_by_epoch_and_seed_alone(corpus: Path, loaded: LoadedModel) -> None:
    utterances = read_manifest(corpus / "train_manifest.json")
    plain, one, again, other = (
        SpeechDataset(utterances, loaded.processor, augment, seed)
        for augment, seed in ((False, 1), (True, 1), (True, 1), (True, 2))
    )
    assert same(examples(plain, 0), examples(plain, 1))
    assert not same(examples(one, 0), examples(plain, 0))
    assert not same(examples(one, 0), examples(one, 1))
    assert same(examples(one, 1), examples(again, 1))
    assert not same(examples(one, 1), examples(other, 1))
    fewer = SpeechDataset(utterances[3:], loaded.processor, True, 1)  # in other places, but the same utterances
    assert same(examples(fewer, 1), examples(one, 1)[3:])


def test_whispers_features_are_masked_along_the_right_axis(
    corpus: Path, whisper_folder: Path, doge_folder: Path
) -> None:
    loaded = assemble_model(whisper_folder, doge_folder, device="cpu", adapter_stack=5)
    utterances = read_manifest(corpus / "train_manifest.json")
    for example in examples(SpeechDataset(utterances, loaded.processor, augment=True), 0):
        frames = example["input_features"][:, : int(example["attention_mask"].sum())]
        assert example["input_features"].shape == (80, 3000)
        hidden_bands = (frames == 0).all(dim=1)
        assert hidden_bands.sum() <= 24
        assert (example["input_features"][~hidden_bands][:, frames.shape[1] :] != 0).all()  # the padding is left alone


def test_cached_features_are_varied_by_epoch_and_seed_alone(
    corpus: Path, granite_folder: Path, loaded: LoadedModel, tmp_path: Path
) -> None:
    config = FeaturesConfig(
        str(corpus), str(tmp_path), speech_encoder=str(granite_folder), device="cpu", augment_copies=2
    )
    cache = FeatureCache.open(compute_features(config).folder)
    utterances = read_manifest(corpus / "train_manifest.json")
    before = [cache[utterance.id].clone() for utterance in utterances]

    def dataset(**options: Any) -> CachedSpeechDataset:
        return CachedSpeechDataset(utterances, loaded.processor, cache, **options)

    plain = dataset()
    for options in ({"use_copies": True}, {"frame_dropping": 0.5}, {"embedding_noise": 0.1}):
        assert not same(examples(dataset(**options), 0), examples(plain, 0))
        assert not same(examples(dataset(**options), 0), examples(dataset(**options), 1))
        assert not same(examples(dataset(**options), 0), examples(dataset(**options, seed=1), 0))
        assert same(examples(dataset(**options), 3), examples(dataset(**options), 3))
        fewer = CachedSpeechDataset(utterances[3:], loaded.processor, cache, **options)
        assert same(examples(fewer, 3), examples(dataset(**options), 3)[3:])
    lengths = {
        len(example["speech_embeddings"])
        for epoch in range(9)
        for example in examples(dataset(use_copies=True), epoch)[:1]
    }
    assert lengths == {cache.num_embeddings(utterances[0].id, copy) for copy in range(3)}
    for example, original in zip(examples(dataset(frame_dropping=0.999), 0), before, strict=True):
        assert 1 <= len(example["speech_embeddings"]) <= len(original)
        assert len(example["attention_mask"]) == len(example["speech_embeddings"])
    noisy = examples(dataset(embedding_noise=0.1), 0)
    ratios = [
        float((example["speech_embeddings"] - original).norm() / original.norm())
        for example, original in zip(noisy, before, strict=True)
    ]
    assert np.mean(ratios) == pytest.approx(0.1, rel=0.2)
    assert all(torch.equal(cache[u.id], original) for u, original in zip(utterances, before, strict=True))


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_an_epoch_and_go_on_within_it(processes: int) -> None:
    """As accelerate deals batches out, which the Trainer leaves it to."""
    lengths = np.random.default_rng(0).uniform(1, 10, 200)
    whole = LengthBatches(lengths.tolist(), 40.0, seed=3).batches(epoch=2)

    def dealt(rank: int, skip: int) -> list[list[int]]:
        batches = LengthBatches(lengths.tolist(), 40.0, seed=3)
        items: Any = range(200)  # a map from index to item is all that a loader asks for
        loader: torch.utils.data.DataLoader[int] = torch.utils.data.DataLoader(
            items, batch_sampler=batches, collate_fn=list
        )
        prepared = prepare_data_loader(loader, num_processes=processes, process_index=rank, put_on_device=False)
        if skip:
            prepared = skip_first_batches(prepared, skip)
        prepared.set_epoch(2)  # which does not reach the batches in every case,
        batches.set_epoch(2)  # so the Trainer's callback tells them
        return list(prepared)

    each = [dealt(rank, 0) for rank in range(processes)]
    assert len({len(batches) for batches in each}) == 1  # else the last step would wait for ever
    together = [batch for step in zip(*each, strict=True) for batch in step]
    assert together[: len(whole)] == whole
    assert [dealt(rank, 5) for rank in range(processes)] == [batches[5:] for batches in each]


def test_settings_of_the_run_name_the_cache_it_used(run: Train, tmp_path: Path, cache: Path) -> None:
    run(tmp_path, features_dir=None, epochs=1)
    assert f"features_dir: {cache}\n" in (tmp_path / training.CONFIG_NAME).read_text()
    assert json.loads((tmp_path / "final" / "config.json").read_text())["model_type"]
