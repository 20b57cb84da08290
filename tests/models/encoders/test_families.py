"""What a new family must not do is refused before anything is computed with it."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from asr_doge.errors import CheckpointError
from asr_doge.models.checkpoints import find_model, load_model_config
from asr_doge.models.encoders import ENCODERS, EncoderFamily
from asr_doge.models.encoders.loading import load_encoder
from asr_doge.models.encoders.whisper import WhisperSpeechEncoder
from asr_doge.models.feature_extraction_asr_doge import WaveformFeatureExtractor


class UnknownFeatureExtractor(WaveformFeatureExtractor):
    """Not registered with transformers."""


class WithUnknownExtractor(WhisperSpeechEncoder):
    """Its checkpoints would have an extractor that `load_model` does not find."""

    @staticmethod
    def feature_extractor(config: Any) -> Any:
        return UnknownFeatureExtractor()


class WithNameOfTrainedHead(WhisperSpeechEncoder):
    """Its own head would be taken for one that was trained."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.ctc_head = nn.Linear(config.d_model, 4)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (WithUnknownExtractor, "register UnknownFeatureExtractor with AutoFeatureExtractor"),
        (WithNameOfTrainedHead, r"WithNameOfTrainedHead\.ctc_head needs another name"),
    ],
)
def test_a_family_whose_checkpoints_could_not_be_loaded_is_refused(
    family: type[EncoderFamily], message: str, whisper_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENCODERS, "whisper", family)
    reference = find_model(whisper_folder)
    with pytest.raises(CheckpointError, match=message):
        load_encoder(reference, load_model_config(reference))
