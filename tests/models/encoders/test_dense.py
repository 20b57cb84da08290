"""The dense form of each encoder family gives what the family gives, whatever the batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asr_doge.errors import ConfigError
from asr_doge.models import assemble_model
from asr_doge.models.checkpoints import find_model, load_model_config
from asr_doge.models.encoders import ENCODERS, EncoderFamily, SpeechEncoder, length_mask, set_encoder_window
from asr_doge.models.encoders.dense import DENSE
from asr_doge.models.encoders.loading import load_encoder
from asr_doge.models.export import EncoderGraph
from tests.models import tiny, tiny_encoders


def test_a_family_without_one_cannot_be_exported(doge_folder: Path, tmp_path: Path) -> None:
    assert ENCODERS.keys() - DENSE.keys() == {"encodec", "granite_speech5_ctc"}
    loaded = assemble_model(tiny_encoders.save("seanet", tmp_path / "encoder"), doge_folder, device="cpu")
    with pytest.raises(ConfigError, match="of type 'encodec' cannot be exported; granite_speech, "):
        EncoderGraph(loaded.model)


@pytest.fixture(scope="module", params=[*tiny_encoders.OF_CHARACTERS, "parakeet"])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EncoderFamily:
    reference = find_model(tiny_encoders.save(request.param, tmp_path_factory.mktemp("models") / request.param))
    encoder = load_encoder(reference, load_model_config(reference), torch.float64)
    assert isinstance(encoder, EncoderFamily)
    return encoder


@settings(max_examples=10)
@example(lengths=[1, 41, 40, 90], extra=0)
@example(lengths=[1], extra=0)
@given(lengths=st.lists(st.integers(1, 500), min_size=1, max_size=3), extra=st.integers(0, 60))
def test_a_family_with_a_head_of_its_own(encoder: EncoderFamily, lengths: list[int], extra: int) -> None:
    config: Any = encoder.config
    size = encoder.feature_extractor(config).feature_size
    features, mask = tiny.padded(tiny.random_clips(lengths, size=size), padding=9.0, extra=extra)
    features = features[..., 0] if size == 1 else features
    sizes = mask.sum(dim=1)
    with torch.no_grad():
        ours = encoder(features, sizes, return_ctc_logits=True)
        dense = DENSE[encoder.model_type](encoder)(features, sizes)
    longest = ours.speech_embeddings.shape[1]
    assert torch.equal(dense.speech_lengths, ours.speech_lengths)
    assert tiny.relative_difference(dense.speech_embeddings[:, :longest], ours.speech_embeddings) < 1e-9
    assert not dense.speech_embeddings[:, longest:].any()
    real = length_mask(ours.ctc_lengths, longest)
    assert torch.equal(dense.ctc_lengths, ours.ctc_lengths)
    assert tiny.relative_difference(dense.ctc_logits[:, :longest][real], ours.ctc_logits[real]) < 1e-9


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
