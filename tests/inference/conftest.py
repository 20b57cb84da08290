"""One model that writes briefly, loaded once."""

from pathlib import Path

import pytest
import torch

from asr_doge.inference.transcription import Transcriber
from asr_doge.models import load_model
from tests import speech


@pytest.fixture(scope="package")
def brief_folder(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that writes 12 tokens a recording."""
    return speech.brief_checkpoint(checkpoint_folder, tmp_path_factory.mktemp("inference") / "checkpoint")


@pytest.fixture(scope="package")
def transcriber(brief_folder: Path) -> Transcriber:
    """In float64, where batching changes nothing that can be seen."""
    return Transcriber(load_model(brief_folder, device="cpu", dtype=torch.float64))
