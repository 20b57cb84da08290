"""Parakeet and Granite Speech 5 give upstream's states and logits, each clip as if it were alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import ParakeetForCTC
from transformers.models.granite_speech5.modeling_granite_speech5 import GraniteSpeech5ForCTC

from asr_doge.errors import CheckpointError
from asr_doge.models import assemble_model, load_model
from asr_doge.models.checkpoints import find_model, load_model_config
from asr_doge.models.encoders import SpeechEncoder
from asr_doge.models.encoders.loading import load_encoder
from tests.models import tiny, tiny_encoders
from tests.models.tiny_encoders import FEATURES, PIECES, pieces_tokenizer


@pytest.fixture(scope="module", params=tiny_encoders.OF_PIECES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoders.save(request.param, tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(scope="module")
def upstream(folder: Path) -> Any:
    kind = ParakeetForCTC if folder.name == "parakeet" else GraniteSpeech5ForCTC
    model: Any = kind.from_pretrained(folder, dtype=torch.float64)
    return model.double().eval()


def load(folder: Path) -> SpeechEncoder:
    reference = find_model(folder)
    return load_encoder(reference, load_model_config(reference), torch.float64)


@pytest.fixture(scope="module")
def encoder(folder: Path) -> SpeechEncoder:
    return load(folder)


@settings(max_examples=10)
@given(
    frames=st.lists(st.integers(4, 90), min_size=1, max_size=3),
    extra=st.integers(0, 20),
    padding=st.sampled_from([0.0, 30.0]),
)
def test_every_clip_of_a_batch_is_upstreams_clip_alone(
    folder: Path, encoder: SpeechEncoder, upstream: Any, frames: list[int], extra: int, padding: float
) -> None:
    clips = tiny.random_clips(frames, size=FEATURES[folder.name])
    batch, mask = tiny.padded(clips, padding, extra)
    blank = upstream.config.pad_token_id
    order = [blank, *(number for number in range(PIECES) if number != blank)]
    with torch.no_grad():
        output = encoder(batch, mask.sum(dim=1), return_ctc_logits=True)
        theirs = [upstream.encoder(clip[None]).last_hidden_state[0] for clip in clips]
        logits = [upstream(clip[None]).logits[0][:, order] for clip in clips]
    assert output.ctc_logits is not None
    assert torch.equal(output.speech_lengths, encoder.output_lengths(mask.sum(dim=1)))
    for row in range(len(clips)):
        length = int(output.speech_lengths[row])
        assert length == len(theirs[row])
        assert tiny.relative_difference(output.speech_embeddings[row, :length], theirs[row]) < 1e-8
        assert tiny.relative_difference(output.ctc_logits[row, :length], logits[row]) < 1e-8
        assert not output.speech_embeddings[row, length:].any()


def test_a_clip_of_one_frame_is_heard(folder: Path, encoder: SpeechEncoder) -> None:
    with torch.no_grad():
        output = encoder(torch.ones(2, 1, FEATURES[folder.name], dtype=torch.float64), torch.tensor([1, 1]))
    assert output.speech_lengths.tolist() == [1, 1]
    assert output.speech_embeddings.isfinite().all()


def test_the_head_spells_in_pieces(encoder: SpeechEncoder, folder: Path) -> None:
    theirs = pieces_tokenizer(load_model_config(find_model(folder)).pad_token_id)
    text = "she sells sea shells"
    expected = theirs.encode(text)
    shift = 0 if theirs.pad_token_id == 0 else 1  # ours begin behind the blank
    assert encoder.ctc_ids(text) == [number + shift for number in expected]
    assert encoder.ctc_text(encoder.ctc_ids(text)).strip() == text
    assert encoder.ctc_units == "bpe"
    assert encoder.ctc_frame_rate_hz == 12.5


def test_weights_are_all_there_or_named(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    gone = next(key for key in sorted(weights) if key.startswith("encoder.layers.1."))
    del weights[gone]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"missing weights {gone}"):
        load(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has a CTC head but no tokenizer\.json"):
        load(tmp_path)


def test_another_kind_of_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tiny.tokenizer().save_pretrained(tmp_path)  # of bytes
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not SentencePiece's BPE"):
        load(tmp_path)


def test_a_checkpoint_on_it_loads_as_it_was_saved(folder: Path, doge_folder: Path, tmp_path: Path) -> None:
    loaded = assemble_model(folder, doge_folder, device="cpu", dtype=torch.float64)
    tiny.randomize(loaded.model.adapter, seed=1)
    waveforms = [tiny.random_waveform(seconds, seed=i) for i, seconds in enumerate((0.3, 1.5))]
    texts = loaded.model.generate(**loaded.processor(waveforms, sampling_rate=16_000), max_new_tokens=5)
    loaded.save(tmp_path / "checkpoint")
    again = load_model(tmp_path / "checkpoint", device="cpu", dtype=torch.float64)
    assert again.model.encoder.ctc_ids("she sells") == loaded.model.encoder.ctc_ids("she sells")
    found = again.model.generate(**again.processor(waveforms, sampling_rate=16_000), max_new_tokens=5)
    assert torch.equal(found, texts)
