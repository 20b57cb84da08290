"""Whisper's encoder gives upstream's states, cut to each clip's own length."""

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from asr_doge.choices import EncoderWindow
from asr_doge.errors import CheckpointError, ConfigError
from asr_doge.models import LoadedEncoder, assemble_model
from asr_doge.models.checkpoints import find_model, load_model_config
from asr_doge.models.encoders import ENCODERS, SpeechEncoder, encoder_family, set_encoder_window
from asr_doge.models.encoders.base import encoder_window
from asr_doge.models.encoders.loading import feature_source, load_encoder
from tests.models import tiny


def load(folder: Path, window: EncoderWindow | None = None) -> SpeechEncoder:
    reference = find_model(folder)
    config = load_model_config(reference)
    set_encoder_window(config, window, encoder_family(config))
    return load_encoder(reference, config, torch.float64)


@settings(max_examples=4)
@example(lengths=[3000, 501])
@given(lengths=st.lists(st.integers(1, 3000), min_size=1, max_size=2))
def test_a_batch_gives_upstreams_states(whisper_folder: Path, lengths: list[int]) -> None:
    full = WhisperForConditionalGeneration.from_pretrained(whisper_folder, dtype=torch.float64).eval()
    features = torch.stack([clip.T for clip in tiny.random_clips([3000] * len(lengths), size=80)])
    with torch.no_grad():
        ours = load(whisper_folder)(features, torch.tensor(lengths))
        theirs = [full.get_encoder()(clip[None]).last_hidden_state[0] for clip in features]
    for states, alone, length in zip(ours.speech_embeddings, theirs, lengths, strict=True):
        count = (length + 1) // 2
        assert tiny.relative_difference(states[:count], alone[:count]) < 1e-9
        assert not states[count:].any()
        assert alone.std(dim=0).min() > 0.05
    assert ours.speech_lengths.tolist() == [(length + 1) // 2 for length in lengths]


def upstream_at_length(folder: Path, features: Tensor, length: int) -> Tensor:
    """Upstream's states of a clip and the second after it, as if Whisper had been built for no more."""
    window = min(length + 100 + length % 2, 3000)
    full = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float64)
    config = copy.deepcopy(full.config)
    config.max_source_positions = window // 2
    encoder = WhisperEncoder(config).double().eval()
    weights = full.get_encoder().state_dict()
    encoder.load_state_dict(weights | {"embed_positions.weight": weights["embed_positions.weight"][: window // 2]})
    with torch.no_grad():
        return encoder(features[None, :, :window]).last_hidden_state[0, : (length + 1) // 2]


@settings(max_examples=8)
@example(lengths=[2900, 1])
@example(lengths=[3000, 2899, 7])
@given(lengths=st.lists(st.integers(1, 700), min_size=1, max_size=3))
def test_at_clip_length_it_gives_upstreams_states_whatever_the_batch(whisper_folder: Path, lengths: list[int]) -> None:
    encoder = load(whisper_folder, "clip")
    features = torch.stack([clip.T for clip in tiny.random_clips([3000] * len(lengths), size=80)])
    with torch.no_grad():
        ours = encoder(features, torch.tensor(lengths))
    assert ours.speech_lengths.tolist() == [(length + 1) // 2 for length in lengths]
    for states, clip, length in zip(ours.speech_embeddings, features, lengths, strict=True):
        theirs = upstream_at_length(whisper_folder, clip, length)
        assert tiny.relative_difference(states[: len(theirs)], theirs) < 1e-9
        assert not states[len(theirs) :].any()


def test_the_window_is_part_of_the_configuration_and_of_the_cache_key(whisper_folder: Path, tmp_path: Path) -> None:
    config = load_model_config(find_model(whisper_folder))
    family = encoder_family(config)
    extractor = family.feature_extractor(config)
    before = feature_source("same weights", config, extractor)
    set_encoder_window(config, "full", family)
    assert feature_source("same weights", config, extractor) == before

    set_encoder_window(config, "clip", family)
    assert feature_source("same weights", config, extractor) != before
    config.save_pretrained(tmp_path)
    again = load_model_config(find_model(tmp_path))
    set_encoder_window(again, None, family)
    assert encoder_window(again) == "clip"
    set_encoder_window(again, "full", family)
    assert feature_source("same weights", again, extractor) == before


def test_a_window_that_the_family_does_not_have_is_refused(granite_folder: Path) -> None:
    config = load_model_config(find_model(granite_folder))
    with pytest.raises(ConfigError, match="--encoder_window clip is not for encoders of type 'granite_speech'"):
        set_encoder_window(config, "clip", encoder_family(config))


def test_only_the_encoder_is_read(whisper_folder: Path, tmp_path: Path) -> None:
    weights = load_file(whisper_folder / "model.safetensors")
    kept = {key: tensor for key, tensor in weights.items() if key.startswith("model.encoder.")}
    assert 0 < len(kept) < len(weights)
    (tmp_path / "config.json").write_bytes((whisper_folder / "config.json").read_bytes())
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    encoder = load(tmp_path)
    assert sum(p.numel() for p in encoder.parameters()) == sum(tensor.numel() for tensor in kept.values())

    del kept["model.encoder.conv1.weight"]
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing weights encoder\.conv1\.weight"):
        load(tmp_path)


def test_there_is_no_ctc_head(whisper_folder: Path) -> None:
    encoder = load(whisper_folder)
    assert not encoder.has_ctc
    assert encoder.ctc_frame_rate_hz == 0
    with pytest.raises(ValueError, match="no CTC head"):
        encoder(torch.zeros(1, 80, 3000, dtype=torch.float64), torch.tensor([10]), return_ctc_logits=True)
    with pytest.raises(ValueError, match="no CTC head"):
        encoder.ctc_text([1])


@settings(max_examples=8)
@given(samples=st.lists(st.integers(400, 80_000), min_size=2, max_size=3))
def test_clips_of_any_length_give_a_length_in_proportion(
    whisper_folder: Path, doge_folder: Path, samples: list[int]
) -> None:
    encoder = load(whisper_folder)
    extractor = ENCODERS["whisper"].feature_extractor(load_model_config(find_model(whisper_folder)))
    waveforms = [tiny.random_waveform(n / 16_000) for n in samples]
    features = extractor(waveforms, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True)
    lengths = encoder.output_lengths(features.attention_mask.sum(dim=1))
    for n, length in zip(samples, lengths.tolist(), strict=True):
        assert abs(length - n / 320) <= 1


def test_a_model_on_whisper_is_exact_in_batches_and_refuses_to_cut(whisper_folder: Path, doge_folder: Path) -> None:
    loaded = assemble_model(whisper_folder, doge_folder, device="cpu", dtype=torch.float64, adapter_stack=5)
    tiny.randomize(loaded.model.adapter, seed=1)
    waveforms = [tiny.random_waveform(seconds, seed=i) for i, seconds in enumerate((0.7, 1.9))]
    together = loaded.model.generate(**loaded.processor(waveforms, sampling_rate=16_000), max_new_tokens=6)
    for row, waveform in zip(together, waveforms, strict=True):
        single = loaded.model.generate(**loaded.processor(waveform, sampling_rate=16_000), max_new_tokens=6)[0]
        assert row.tolist() == single.tolist() + [2] * (len(row) - len(single))
    assert together[0].tolist() != together[1].tolist()
    # Without a mask everything counts as speech; the frames are Whisper's last axis.
    features = loaded.processor(waveforms, sampling_rate=16_000).input_features
    with torch.no_grad():
        unmasked = loaded.model(features).logits
        masked = loaded.model(features, torch.ones(2, 3000, dtype=torch.long)).logits
    assert torch.equal(unmasked, masked)

    thirty_seconds = tiny.random_waveform(30)
    assert loaded.processor(thirty_seconds).attention_mask.sum() == 3000
    with pytest.raises(ValueError, match="at most 480000 samples"):
        loaded.processor([waveforms[0], tiny.random_waveform(30.001)])


def test_another_family_is_refused_by_name(doge_folder: Path) -> None:
    config = load_model_config(find_model(doge_folder))
    with pytest.raises(CheckpointError, match=r"'doge' is not supported; supported: .*granite_speech, .*whisper"):
        encoder_family(config)


@settings(max_examples=8)
@example(samples=[480_000, 16_000])
@example(samples=[464_000])
@example(samples=[401])
@given(samples=st.lists(st.integers(401, 100_000), min_size=1, max_size=3))
def test_features_of_the_window_alone_are_those_of_thirty_seconds(whisper_folder: Path, samples: list[int]) -> None:
    encoder = load(whisper_folder, "clip")
    extractor = ENCODERS["whisper"].feature_extractor(load_model_config(find_model(whisper_folder)))
    waveforms = [tiny.random_waveform(n / 16_000) for n in samples]
    whole = extractor(waveforms, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True)
    features, mask = LoadedEncoder(encoder, extractor).input_features(waveforms)
    frames = features.shape[2]
    assert frames == min(
        3000, 2 * -(-(-(-max(samples) // 160) + 100) // 2)
    )  # a second more than the longest clip, even
    assert mask.sum(dim=1).equal(whole.attention_mask.sum(dim=1))
    assert (features - whole.input_features[..., :frames]).abs().max() < 1e-5
    with torch.no_grad():
        ours = encoder(features.double(), mask.sum(dim=1)).speech_embeddings
        theirs = encoder(whole.input_features.double(), mask.sum(dim=1)).speech_embeddings
    assert tiny.relative_difference(ours, theirs) < 1e-4
