"""SEANet gives the states of EnCodec's encoder, each clip as if it were alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import EncodecConfig, EncodecModel

from asr_doge.errors import CheckpointError
from asr_doge.models import assemble_model, load_model
from asr_doge.models.checkpoints import find_model, load_model_config
from asr_doge.models.encoders import SpeechEncoder
from asr_doge.models.encoders.loading import load_encoder
from asr_doge.models.encoders.seanet import SEANetSpeechEncoder
from tests.models import tiny, tiny_encoders
from tests.models.tiny_encoders import SEANET, SEANET_WITH_HEAD

HOP = 40


def load(folder: Path) -> SpeechEncoder:
    reference = find_model(folder)
    return load_encoder(reference, load_model_config(reference), torch.float64)


@pytest.fixture(scope="module")
def upstream() -> EncodecModel:
    model = EncodecModel(EncodecConfig(**SEANET))
    tiny.randomize(model, seed=5)
    return model.eval()


@pytest.fixture(scope="module")
def folder(upstream: EncodecModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "seanet"
    upstream.save_pretrained(folder)
    upstream.double()
    return folder


@settings(max_examples=15)
@given(
    samples=st.lists(st.integers(1, 500), min_size=1, max_size=3),
    extra=st.integers(0, 90),
    padding=st.sampled_from([0.0, 30.0]),
)
def test_every_clip_of_a_batch_is_upstreams_clip_alone(
    folder: Path, upstream: EncodecModel, samples: list[int], extra: int, padding: float
) -> None:
    encoder = load(folder)
    clips = [clip[:, 0] for clip in tiny.random_clips(samples, size=1)]
    batch, mask = tiny.padded([clip[:, None] for clip in clips], padding, extra)
    with torch.no_grad():
        output = encoder(batch[..., 0], mask.sum(dim=1))
        theirs = [upstream.encoder(clip[None, None])[0].T for clip in clips]
    assert torch.equal(output.speech_lengths, encoder.output_lengths(mask.sum(dim=1)))
    for row, states in enumerate(theirs):
        length = int(output.speech_lengths[row])
        assert length == len(states) == -(-samples[row] // HOP)
        scale = max(float(states.abs().max()), 1e-3)
        assert float((output.speech_embeddings[row, :length] - states).abs().max()) < 1e-9 * scale
        assert not output.speech_embeddings[row, length:].any()


def test_a_head_is_part_of_the_checkpoint(tmp_path: Path) -> None:
    again = load(tiny_encoders.save("seanet", tmp_path))
    encoder = SEANetSpeechEncoder(EncodecConfig(**SEANET_WITH_HEAD))
    tiny.randomize(encoder, seed=5)
    assert again.has_ctc
    assert again.ctc_text([2, 1, 3]) == "a b"
    assert again.ctc_frame_rate_hz == 16_000 / HOP
    waveform, length = torch.randn(1, 90, dtype=torch.float64), torch.tensor([90])
    with torch.no_grad():
        output = again(waveform, length, return_ctc_logits=True)
        expected = encoder.double()(waveform, length, return_ctc_logits=True)
    assert output.ctc_logits is not None
    assert torch.allclose(output.ctc_logits, expected.ctc_logits)
    assert output.ctc_logits.shape == (1, 3, 4)


def test_only_the_encoder_is_read_and_all_of_it(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    weights = load_file(folder / "model.safetensors")
    kept = {key: tensor for key, tensor in weights.items() if key.startswith("encoder.")}
    assert 0 < len(kept) < len(weights)
    gone = next(iter(sorted(kept)))
    del kept[gone]
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="missing weights encoder"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampling_rate": 24_000}, "takes 24000 Hz, and recordings are read at 16000 Hz"),
        ({"pad_mode": "reflect"}, "pad_mode constant"),
        ({"audio_channels": 2}, "takes 2 channels"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    EncodecConfig(**(SEANET | change)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_a_checkpoint_on_it_loads_as_it_was_saved(folder: Path, doge_folder: Path, tmp_path: Path) -> None:
    loaded = assemble_model(folder, doge_folder, device="cpu", dtype=torch.float64, adapter_stack=20)
    tiny.randomize(loaded.model.adapter, seed=1)
    waveforms = [tiny.random_waveform(seconds, seed=i) for i, seconds in enumerate((0.1, 0.15))]
    texts = loaded.model.generate(**loaded.processor(waveforms, sampling_rate=16_000), max_new_tokens=5)
    loaded.save(tmp_path / "checkpoint")
    again = load_model(tmp_path / "checkpoint", device="cpu", dtype=torch.float64)
    found = again.model.generate(**again.processor(waveforms, sampling_rate=16_000), max_new_tokens=5)
    assert torch.equal(found, texts)
