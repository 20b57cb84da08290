"""The dense form of each encoder family gives what the family gives, whatever the batch."""

from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import EncodecConfig, EncodecModel

from asr_doge.errors import ConfigError
from asr_doge.models import assemble_model
from asr_doge.models.checkpoints import find_model, load_model_config
from asr_doge.models.encoders import ENCODERS, SpeechEncoder, length_mask, set_encoder_window
from asr_doge.models.encoders.dense import DENSE
from asr_doge.models.encoders.loading import load_encoder
from asr_doge.models.export import EncoderGraph
from tests.models import tiny


def test_a_family_without_one_cannot_be_exported(doge_folder: Path, tmp_path: Path) -> None:
    assert DENSE.keys() == {"granite_speech", "whisper"}
    assert DENSE.keys() < ENCODERS.keys()
    config = EncodecConfig(sampling_rate=16_000, pad_mode="constant", num_filters=4, hidden_size=16, codebook_dim=16)
    EncodecModel(config).save_pretrained(tmp_path / "encoder")
    loaded = assemble_model(tmp_path / "encoder", doge_folder, device="cpu")
    with pytest.raises(ConfigError, match="of type 'encodec' cannot be exported; granite_speech, whisper can"):
        EncoderGraph(loaded.model)


@pytest.fixture(scope="module")
def granite(granite_folder: Path) -> SpeechEncoder:
    reference = find_model(granite_folder)
    return load_encoder(reference, load_model_config(reference), torch.float64)


@settings(max_examples=25)
@example(lengths=[1, 413, 200], extra=0)
@example(lengths=[15, 16], extra=190)
@given(lengths=st.lists(st.integers(1, 430), min_size=1, max_size=4), extra=st.integers(0, 30))
def test_granite_speech(granite: SpeechEncoder, lengths: list[int], extra: int) -> None:
    features, mask = tiny.padded(tiny.random_clips(lengths), padding=9.0, extra=extra)
    sizes = mask.sum(dim=1)
    with torch.no_grad():
        ours, dense = (
            granite(features, sizes, return_ctc_logits=True),
            DENSE["granite_speech"](granite)(features, sizes),
        )
    assert torch.equal(dense.speech_lengths, ours.speech_lengths)
    assert dense.speech_embeddings.shape == ours.speech_embeddings.shape
    assert tiny.relative_difference(dense.speech_embeddings, ours.speech_embeddings) < 1e-9
    real = length_mask(sizes, features.shape[1])
    assert tiny.relative_difference(dense.ctc_logits[real], ours.ctc_logits[real]) < 1e-9


def test_whisper(whisper_folder: Path) -> None:
    reference = find_model(whisper_folder)
    whisper = load_encoder(reference, load_model_config(reference), torch.float64)
    features = torch.stack([clip.T for clip in tiny.random_clips([3000, 3000], size=80)])
    lengths = torch.tensor([501, 2000])
    with torch.no_grad():
        ours, dense = whisper(features, lengths), DENSE["whisper"](whisper)(features, lengths)
    assert torch.equal(dense.speech_lengths, ours.speech_lengths)
    assert torch.equal(dense.speech_embeddings[:, :1000], ours.speech_embeddings)
    assert not dense.speech_embeddings[:, 1000:].any()


def test_whisper_at_clip_length(whisper_folder: Path) -> None:
    reference = find_model(whisper_folder)
    config = load_model_config(reference)
    set_encoder_window(config, "clip", ENCODERS["whisper"])
    whisper = load_encoder(reference, config, torch.float64)
    features = torch.stack([clip.T for clip in tiny.random_clips([3000, 3000], size=80)])
    lengths = torch.tensor([501, 800])
    with torch.no_grad():
        ours, dense = whisper(features, lengths), DENSE["whisper"](whisper)(features, lengths)
    assert torch.equal(dense.speech_lengths, ours.speech_lengths)
    assert tiny.relative_difference(dense.speech_embeddings[:, :400], ours.speech_embeddings) < 1e-9
