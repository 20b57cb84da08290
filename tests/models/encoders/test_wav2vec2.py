"""Wav2Vec2, HuBERT and WavLM give upstream's states and logits, each clip as if it were alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    HubertConfig,
    HubertForCTC,
    HubertModel,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMForCTC,
)

from asr_doge.errors import CheckpointError
from asr_doge.models import assemble_model, load_encoder_alone, load_model
from asr_doge.models.checkpoints import find_model, load_model_config
from asr_doge.models.encoders import SpeechEncoder
from asr_doge.models.encoders.loading import load_encoder
from asr_doge.models.quantization import SMALLEST, Int8Linear
from tests.models import tiny, tiny_encoders
from tests.models.tiny_encoders import BLANK, CHARACTERS, SHORTEST, WAV2VEC2


@pytest.fixture(scope="module", params=tiny_encoders.OF_CHARACTERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoders.save(request.param, tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(scope="module")
def upstream(folder: Path) -> PreTrainedModel:
    kind: dict[str, Any] = {"wav2vec2": Wav2Vec2ForCTC, "hubert": HubertForCTC, "wavlm": WavLMForCTC}
    config = load_model_config(find_model(folder))
    model: PreTrainedModel = kind[config.model_type].from_pretrained(folder, dtype=torch.float64)
    return model.eval()


def load(folder: Path) -> SpeechEncoder:
    reference = find_model(folder)
    return load_encoder(reference, load_model_config(reference), torch.float64)


@pytest.fixture(scope="module")
def encoder(folder: Path) -> SpeechEncoder:
    return load(folder)


def alone(model: PreTrainedModel, clip: Tensor) -> tuple[Tensor, Tensor]:
    """Upstream's states and logits of one clip, the blank first as ours has it."""
    with torch.no_grad():
        states = model.base_model(clip[None]).last_hidden_state[0]
        logits = model(clip[None]).logits[0]
    order = [BLANK, *(number for number in range(len(CHARACTERS)) if number != BLANK)]
    return states, logits[:, order]


@settings(max_examples=6)
@given(
    samples=st.lists(st.integers(SHORTEST, 700), min_size=1, max_size=3),
    extra=st.integers(0, 50),
    padding=st.sampled_from([0.0, 30.0]),
)
def test_every_clip_of_a_batch_is_upstreams_clip_alone(
    encoder: SpeechEncoder, upstream: PreTrainedModel, samples: list[int], extra: int, padding: float
) -> None:
    clips = [clip[:, 0] for clip in tiny.random_clips(samples, size=1)]
    batch, mask = tiny.padded([clip[:, None] for clip in clips], padding, extra)
    with torch.no_grad():
        output = encoder(batch[..., 0], mask.sum(dim=1), return_ctc_logits=True)
    assert output.ctc_logits is not None
    assert output.ctc_lengths is not None
    assert torch.equal(output.speech_lengths, encoder.output_lengths(mask.sum(dim=1)))
    for row, clip in enumerate(clips):
        states, logits = alone(upstream, clip)
        length = int(output.speech_lengths[row])
        assert (length, int(output.ctc_lengths[row])) == (len(states), len(logits))
        assert tiny.relative_difference(output.speech_embeddings[row, :length], states) < 1e-9
        assert tiny.relative_difference(output.ctc_logits[row, :length], logits) < 1e-9
        assert not output.speech_embeddings[row, length:].any()


def test_a_clip_shorter_than_a_frame_is_still_one(encoder: SpeechEncoder) -> None:
    with torch.no_grad():
        output = encoder(torch.ones(2, 40, dtype=torch.float64), torch.tensor([3, 40]))
    assert output.speech_lengths.tolist() == [1, 1]
    assert output.speech_embeddings.isfinite().all()


def test_the_head_spells_what_its_vocabulary_says_in_lower_case(encoder: SpeechEncoder) -> None:
    spelled = {token: number + 1 for number, token in enumerate(token for token in CHARACTERS if token != "<pad>")}
    heard = [spelled[token] for token in ("<s>", "T", "E", "N", "|", "O", "'", "<unk>", "N")]
    assert encoder.ctc_text(heard) == "ten o'n"
    assert encoder.ctc_ids("ten x o'n") == [spelled[token] for token in "TEN||O'N"]
    assert encoder.ctc_frame_rate_hz == encoder.frame_rate_hz == 16_000 / 20


def test_waveforms_are_prepared_as_the_checkpoints_own_extractor_does(folder: Path) -> None:
    ours = load_encoder_alone(folder, device="cpu").feature_extractor
    theirs = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    waveforms = [5 + 3 * tiny.random_waveform(seconds, seed=i) for i, seconds in enumerate((0.1, 0.23))]
    batch = ours(waveforms, sampling_rate=16_000)
    assert batch.attention_mask.sum(dim=1).tolist() == [1600, 3680]
    for row, waveform in enumerate(waveforms):
        expected = theirs(waveform, sampling_rate=16_000, return_tensors="pt").input_values[0]
        assert torch.allclose(batch.input_features[row, : len(waveform)], expected, atol=1e-5)
    with pytest.raises(ValueError, match="expected waveforms at 16000 Hz, got 8000 Hz"):
        ours(waveforms, sampling_rate=8_000)


def test_older_names_of_weights_load_and_those_of_pretraining_are_left_out(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    new = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    old = {key: key for key in weights}
    for suffix, name in new.items():
        old |= {key: key.replace(suffix, name) for key in weights if key.endswith(suffix)}
    assert any(key != name for key, name in old.items()) or any(key.endswith("weight_g") for key in weights)
    renamed = {old[key]: tensor for key, tensor in weights.items()}
    renamed["quantizer.codevectors"] = torch.zeros(1, 2, 3)
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found, expected = load(tmp_path).state_dict(), load(folder).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)

    del renamed["lm_head.bias"]
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing weights lm_head\.bias"):
        load(tmp_path)


def test_a_checkpoint_without_a_head_has_no_ctc(tmp_path: Path) -> None:
    model = Wav2Vec2Model(Wav2Vec2Config(**WAV2VEC2))
    model.save_pretrained(tmp_path)
    encoder = load(tmp_path)
    assert not encoder.has_ctc
    with pytest.raises(ValueError, match="has no CTC head"):
        encoder(torch.zeros(1, 400, dtype=torch.float64), torch.tensor([400]), return_ctc_logits=True)


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    tiny_encoders.save("wav2vec2", tmp_path)
    Wav2Vec2FeatureExtractor(sampling_rate=8_000).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="takes 8000 Hz, and recordings are read at 16000 Hz"):
        load(tmp_path)
    (tmp_path / "vocab.json").unlink()
    with pytest.raises(CheckpointError, match=r"has a CTC head but no vocab\.json"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("model", "setting"),
    [
        (lambda: Wav2Vec2Model(Wav2Vec2Config(**WAV2VEC2, add_adapter=True)), "add_adapter"),
        (lambda: HubertModel(HubertConfig(**WAV2VEC2, conv_pos_batch_norm=True)), "conv_pos_batch_norm"),
    ],
)
def test_parts_that_are_not_supported_are_named(
    model: Callable[[], PreTrainedModel], setting: str, tmp_path: Path
) -> None:
    model().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=f"encoder with {setting} is not supported"):
        load(tmp_path)


def test_a_clip_shorter_than_a_frame_hears_no_padding(encoder: SpeechEncoder) -> None:
    (clip,) = tiny.random_clips([7], size=1)
    quiet, loud = (F.pad(clip[:, 0], (0, 100), value=value) for value in (0.0, 30.0))
    with torch.no_grad():
        outputs = [encoder(batch[None], torch.tensor([7])).speech_embeddings for batch in (quiet, loud)]
    assert torch.equal(*outputs)


def test_a_checkpoint_on_it_loads_as_it_was_saved(folder: Path, doge_folder: Path, tmp_path: Path) -> None:
    loaded = assemble_model(folder, doge_folder, device="cpu", dtype=torch.float64, adapter_stack=20)
    tiny.randomize(loaded.model.adapter, seed=1)
    waveforms = [tiny.random_waveform(seconds, seed=i) for i, seconds in enumerate((0.3, 0.5))]
    texts = loaded.model.generate(**loaded.processor(waveforms, sampling_rate=16_000), max_new_tokens=5)
    loaded.save(tmp_path / "checkpoint")
    again = load_model(tmp_path / "checkpoint", device="cpu", dtype=torch.float64)
    assert again.model.encoder.has_ctc
    assert again.model.encoder.ctc_ids("ten") == loaded.model.encoder.ctc_ids("ten")
    found = again.model.generate(**again.processor(waveforms, sampling_rate=16_000), max_new_tokens=5)
    assert torch.equal(found, texts)


@pytest.mark.parametrize(
    ("kind", "config"),
    [(Wav2Vec2ForCTC, Wav2Vec2Config), (HubertForCTC, HubertConfig), (WavLMForCTC, WavLMConfig)],
)
def test_its_matrices_can_be_rounded(kind: Any, config: Any, tmp_path: Path) -> None:
    wide = WAV2VEC2 | {"hidden_size": 2 * SMALLEST, "intermediate_size": 2 * SMALLEST}
    model = kind(config(**wide))
    tiny.randomize(model, seed=5)
    tiny_encoders.save_of_characters(model, tmp_path)
    whole, rounded = (
        load_encoder_alone(tmp_path, device="cpu", quantization=kind_of_weights) for kind_of_weights in ("none", "int8")
    )
    layers = [name for name, part in rounded.encoder.named_modules() if isinstance(part, Int8Linear)]
    assert sum("attention" in name for name in layers) == 2 * 4  # of two layers
    (clip,) = tiny.random_clips([700], size=1)
    expected, found = (loaded.encode([clip[:, 0].float().numpy()]).speech_embeddings for loaded in (whole, rounded))
    assert 0 < tiny.relative_difference(found, expected) < 0.5
