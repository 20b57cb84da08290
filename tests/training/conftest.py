"""A corpus of noise, its feature cache, and runs on them that take a second."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asr_doge.inference.configuration import FeaturesConfig
from asr_doge.inference.features import compute_features
from asr_doge.models import loading
from asr_doge.training import callbacks
from asr_doge.training.configuration import TrainConfig
from asr_doge.training.training import TrainResult, train
from tests import speech

Settings = Callable[..., TrainConfig]
Train = Callable[..., TrainResult]
Finished = Callable[..., tuple[Path, TrainResult]]
Copied = Callable[..., Path]
MAX_NEW_TOKENS = 12  # random models never stop by themselves


@pytest.fixture(scope="package")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 clips to train on, 4 to tune on; not to be changed by a test."""
    return speech.write_corpus(tmp_path_factory.mktemp("training") / "processed", train=12, dev=4, test=2)


@pytest.fixture(scope="package")
def cache(corpus: Path, granite_folder: Path) -> Path:
    """The corpus's features."""
    return Path(compute_features(FeaturesConfig(str(corpus), speech_encoder=str(granite_folder), device="cpu")).folder)


@pytest.fixture(scope="package")
def settings(corpus: Path, cache: Path, granite_folder: Path, doge_folder: Path) -> Settings:
    """Settings of a run with tiny parts; 12 steps unless told otherwise, three an epoch."""

    def settings_with(output_dir: Path, **options: Any) -> TrainConfig:
        defaults: dict[str, Any] = {
            "data_dir": str(corpus),
            "features_dir": str(cache),
            "speech_encoder": str(granite_folder),
            "language_model": str(doge_folder),
            "adapter_hidden_dim": 32,
            "batch_size": 4,
            "learning_rate": 1e-2,
            "warmup_steps": 2,
            "warm_up": "none",
            "epochs": 4,
            "eval_steps": 4,
            "save_steps": 4,
            "patience": 100,
            "num_workers": 0,
            "device": "cpu",
            "dtype": "fp32",
        }
        return TrainConfig(**defaults | {"output_dir": str(output_dir)} | options)

    return settings_with


def brief(patch: pytest.MonkeyPatch) -> None:
    """Shorten runs: of their texts, and without their pictures, which take longer than such a run (`test_curves`)."""
    patch.setattr(loading, "MAX_NEW_TOKENS", MAX_NEW_TOKENS)
    patch.setattr(callbacks, "draw_curves", lambda *_: None)


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Train:
    """`train` with these settings."""
    brief(monkeypatch)
    return lambda output_dir, **options: train(settings(output_dir, **options))


@pytest.fixture(scope="package")
def finished(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Runs that nothing interrupted, each made once: their folders, not to be changed by a test, and their results."""
    made: dict[str, tuple[Path, TrainResult]] = {}

    def finished_with(**options: Any) -> tuple[Path, TrainResult]:
        key = repr(sorted(options.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("finished") / "run"
            with pytest.MonkeyPatch.context() as patch:
                brief(patch)
                made[key] = folder, train(settings(folder, **options))
        return made[key]

    return finished_with


@pytest.fixture
def copied(finished: Finished, tmp_path: Path) -> Copied:
    """A copy of a finished run's folder, under a name, to go on with."""
    return lambda name, **options: shutil.copytree(finished(**options)[0], tmp_path / name)
