"""An encoder that was trained beside a CTC head: the head is whole, and whatever loads the checkpoint runs it."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from asr_doge.choices import TrainEncoder
from asr_doge.cli import main
from asr_doge.errors import CheckpointError
from asr_doge.models import LoadedEncoder, LoadedModel, assemble_model, load_encoder_alone, load_model
from asr_doge.models.adapter_ctc import adapter_head_settings
from asr_doge.models.ctc_head import CTCHeadSettings, HeadedEncoder
from asr_doge.models.ctc_head_checkpoints import find_speech_encoder
from asr_doge.models.quantization import quantize_linear_layers, quantized_weights
from tests.models import tiny

CHOICES: tuple[TrainEncoder, ...] = ("lora", "last_k")
HEADS = ("from a folder", "conformer", "adapter")
CLIPS = [tiny.random_waveform(seconds, seed=i) for i, seconds in enumerate((0.7, 1.3))]
LINEAR_LAYERS = 2 * 6
"""Of tiny Whisper's two layers: four of attention, two after it."""


def assembled_with(
    head: str, choice: TrainEncoder, head_folder: Path, whisper_folder: Path, doge_folder: Path, **options: Any
) -> LoadedModel:
    """Tiny Whisper with a head and trained weights that differ from those it began with."""
    loaded = assemble_model(
        head_folder if head == "from a folder" else whisper_folder,
        doge_folder,
        encoder_window="clip",
        device="cpu",
        dtype=torch.float64,
        adapter_stack=2,
        train_encoder=choice,
        train_encoder_layers=1,
        **options,
    )
    if head == "conformer":
        loaded.model.add_ctc_head(CTCHeadSettings(list(" abc"), (), "conformer", 2, 8, 1, 0.0))
    elif head == "adapter":
        loaded.model.add_ctc_head(adapter_head_settings(loaded.processor.tokenizer, range(3, 60)))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if loaded.model.is_trained(name):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return loaded


def of_encoder(names: Any) -> set[str]:
    return {name for name in names if name.startswith("encoder.") and not name.startswith("encoder.ctc_head.")}


def encoded(loaded: LoadedModel | LoadedEncoder) -> tuple[torch.Tensor, torch.Tensor]:
    output = loaded.speech_encoder.encode(CLIPS, return_ctc_logits=True)
    assert output.ctc_logits is not None
    return output.speech_embeddings, output.ctc_logits


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("head", HEADS)
def test_the_trained_encoder_comes_back_with_its_head(
    head: str, choice: TrainEncoder, head_folder: Path, whisper_folder: Path, doge_folder: Path, tmp_path: Path
) -> None:
    loaded = assembled_with(head, choice, head_folder, whisper_folder, doge_folder)
    encoder = loaded.model.encoder
    assert isinstance(encoder, HeadedEncoder)
    assert not any(".lora_" in name for name, _ in encoder.ctc_head.named_parameters())
    trained = of_encoder(name for name, p in loaded.model.named_parameters() if p.requires_grad)
    if choice == "lora":
        assert trained == {
            f"encoder.family.{name}" for name, _ in encoder.family.named_parameters() if ".lora_" in name
        }
        assert len(trained) == 2 * LINEAR_LAYERS
    else:
        assert any(".layers.1." in name for name in trained)
        assert not any(".layers.0." in name for name in trained)
    loaded.save(tmp_path / "saved")
    assert of_encoder(stored(tmp_path / "saved").keys()) == trained
    batch = loaded.processor(CLIPS, ["the fox", "a dog"], sampling_rate=16_000)
    again = load_model(tmp_path / "saved", device="cpu", dtype=torch.float64)
    assert not any(".lora_" in name for name, _ in again.model.named_parameters())
    assert again.count_parameters() == loaded.count_parameters()
    with torch.no_grad():
        assert torch.allclose(again.model(**batch).logits, loaded.model(**batch).logits, rtol=0, atol=1e-9)
    frozen = assembled_with(head, "none", head_folder, whisper_folder, doge_folder)
    alone = load_encoder_alone(tmp_path / "saved", device="cpu", dtype=torch.float64)
    outputs = [encoded(loaded), encoded(again), encoded(alone), encoded(frozen)]
    for expected, *found, unlike in zip(*outputs, strict=True):
        assert all(torch.allclose(one, expected, rtol=0, atol=1e-9) for one in found)
        assert (unlike - expected).abs().max() > 0.1


def test_a_trained_encoder_is_never_taken_for_a_frozen_one_whose_features_are_cached(
    head_folder: Path, whisper_folder: Path, doge_folder: Path, tmp_path: Path
) -> None:
    assembled_with("from a folder", "lora", head_folder, whisper_folder, doge_folder).save(tmp_path / "saved")
    with pytest.raises(CheckpointError, match="speech encoder of type 'asr_doge' is not supported"):
        find_speech_encoder(tmp_path / "saved")


def save_with_lora(head_folder: Path, doge_folder: Path, folder: Path) -> LoadedModel:
    """LoRA of both parts, saved."""
    loaded = assembled_with("from a folder", "lora", head_folder, head_folder, doge_folder, train_language_model="lora")
    loaded.save(folder)
    return loaded


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_loaded_checkpoint_is_saved_as_it_was(head_folder: Path, doge_folder: Path, tmp_path: Path) -> None:
    save_with_lora(head_folder, doge_folder, tmp_path / "first")
    load_model(tmp_path / "first", device="cpu", dtype=torch.float64).save(tmp_path / "second")
    first, second = stored(tmp_path / "first"), stored(tmp_path / "second")
    assert any(name.startswith("encoder.family.") and ".lora_B." in name for name in first)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_encoder_without_a_pointer_is_saved_with_its_updates_apart(
    head_folder: Path, doge_folder: Path, tmp_path: Path
) -> None:
    loaded = assembled_with("from a folder", "lora", head_folder, head_folder, doge_folder)
    loaded.model.config.speech_encoder = None
    loaded.save(tmp_path / "first")
    again = load_model(tmp_path / "first", device="cpu", dtype=torch.float64)
    again.save(tmp_path / "second")
    assert stored(tmp_path / "first").keys() == stored(tmp_path / "second").keys()
    last = load_model(tmp_path / "second", device="cpu", dtype=torch.float64)
    for expected, *found in zip(encoded(loaded), encoded(again), encoded(last), strict=True):
        assert all(torch.allclose(one, expected, rtol=0, atol=1e-9) for one in found)


def test_the_encoder_alone_needs_no_language_model(head_folder: Path, doge_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(doge_folder, tmp_path / "doge")
    loaded = save_with_lora(head_folder, tmp_path / "doge", tmp_path / "saved")
    shutil.rmtree(tmp_path / "doge")
    with pytest.raises(CheckpointError, match="language_model is not at"):
        load_model(tmp_path / "saved", device="cpu")
    alone = load_encoder_alone(tmp_path / "saved", device="cpu", dtype=torch.float64)
    assert not any(weight.requires_grad for weight in alone.encoder.parameters())
    for expected, found in zip(encoded(loaded), encoded(alone), strict=True):
        assert torch.allclose(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("load", [load_model, load_encoder_alone])
def test_a_layer_without_its_updates_is_named(
    load: Callable[..., Any], head_folder: Path, doge_folder: Path, tmp_path: Path
) -> None:
    save_with_lora(head_folder, doge_folder, tmp_path / "saved")
    weights = stored(tmp_path / "saved")
    lost = [name for name in weights if "encoder.layers.1.fc2" in name]
    assert len(lost) == 2
    kept = {name: weight for name, weight in weights.items() if name not in lost}
    save_file(kept, tmp_path / "saved" / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing weights .*encoder\.layers\.1\.fc2\.lora_A"):
        load(tmp_path / "saved", device="cpu")


@pytest.mark.parametrize("load", [load_model, load_encoder_alone])
def test_merged_layers_are_rounded_as_plain_ones(load: Callable[..., Any], tmp_path: Path) -> None:
    loaded = assemble_model("nano/encoder", "nano/language_model", device="cpu", train_encoder="lora")
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn_like(parameter))
    loaded.save(tmp_path / "saved")
    whole = load(tmp_path / "saved", device="cpu").speech_encoder.encoder
    quantize_linear_layers(whole)
    rounded = load(tmp_path / "saved", device="cpu", quantization="int8").speech_encoder.encoder
    assert len(quantized_weights(rounded)) > 10
    expected, found = whole.state_dict(), rounded.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    frozen = load_encoder_alone("nano/encoder", device="cpu", quantization="int8").encoder
    assert quantized_weights(rounded) == quantized_weights(frozen)
    assert any(not torch.equal(found[name], weight) for name, weight in frozen.state_dict().items())


def test_the_language_models_updates_can_be_merged_where_the_encoder_has_some_too(
    head_folder: Path, doge_folder: Path, tmp_path: Path
) -> None:
    loaded = save_with_lora(head_folder, doge_folder, tmp_path / "saved")
    assert main(["merge", f"--checkpoint_dir={tmp_path / 'saved'}", f"--output_dir={tmp_path / 'merged'}"]) == 0
    names = stored(tmp_path / "merged").keys()
    assert of_encoder(names) == of_encoder(stored(tmp_path / "saved").keys())
    assert not any(name.startswith("language_model.") and ".lora_" in name for name in names)
    merged = load_model(tmp_path / "merged", device="cpu", dtype=torch.float64).model
    batch = loaded.processor(CLIPS, ["the fox", "a dog"], sampling_rate=16_000)
    with torch.no_grad():
        assert torch.allclose(merged(**batch).logits, loaded.model(**batch).logits, rtol=0, atol=1e-3)  # as float32


def test_what_is_loaded_to_be_used_does_not_import_peft(
    head_folder: Path, doge_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_with_lora(head_folder, doge_folder, tmp_path / "saved")
    monkeypatch.setitem(sys.modules, "peft", None)  # which makes every import of it an error
    for load in (load_model, load_encoder_alone):
        load(tmp_path / "saved", device="cpu")
    with pytest.raises(ImportError):
        assembled_with("from a folder", "lora", head_folder, head_folder, doge_folder)
