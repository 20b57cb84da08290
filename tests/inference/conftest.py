"""One model that writes briefly, loaded once."""

from pathlib import Path

import pytest
import torch

from asr_doge.decoding import DecodingConfig
from asr_doge.inference.transcription import Transcriber
from asr_doge.models import load_model
from tests import speech


@pytest.fixture(scope="package")
def brief_folder(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that writes 12 tokens a recording."""
    return speech.brief_checkpoint(checkpoint_folder, tmp_path_factory.mktemp("inference") / "checkpoint")


UNGUARDED = DecodingConfig(guard_silence=False, guard_length=False, guard_loops=False)
"""A random model is never sure of a letter, and writes without end."""


@pytest.fixture(scope="package")
def transcriber(brief_folder: Path) -> Transcriber:
    """In float64, where batching changes nothing that can be seen."""
    return Transcriber(load_model(brief_folder, device="cpu", dtype=torch.float64), decoding=UNGUARDED)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Manifests of nine recordings."""
    return speech.write_corpus(tmp_path / "processed", train=5, dev=2, test=2)
