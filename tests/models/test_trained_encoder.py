"""An encoder that was trained beside a CTC head: the head is whole, and whatever loads the checkpoint runs it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from asr_doge.choices import TrainEncoder
from asr_doge.errors import CheckpointError
from asr_doge.models import LoadedEncoder, LoadedModel, assemble_model, load_encoder_alone, load_model
from asr_doge.models.adapter_ctc import adapter_head_settings
from asr_doge.models.ctc_head import CTCHeadSettings, HeadedEncoder
from asr_doge.models.ctc_head_checkpoints import find_speech_encoder
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
    with safe_open(tmp_path / "saved" / "model.safetensors", "pt") as stored:
        assert of_encoder(stored.keys()) == trained
    batch = loaded.processor(CLIPS, ["the fox", "a dog"], sampling_rate=16_000)
    again = load_model(tmp_path / "saved", device="cpu", dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(
            again.model(**batch).logits, loaded.model(**batch).logits, rtol=0, atol=1e-4
        )  # as float32
    frozen = assembled_with(head, "none", head_folder, whisper_folder, doge_folder)
    alone = load_encoder_alone(tmp_path / "saved", device="cpu", dtype=torch.float64)
    outputs = [encoded(loaded), encoded(again), encoded(alone), encoded(frozen)]
    for expected, *found, unlike in zip(*outputs, strict=True):
        assert all(torch.allclose(one, expected, rtol=0, atol=1e-4) for one in found)
        assert (unlike - expected).abs().max() > 0.1


def test_a_trained_encoder_is_never_taken_for_a_frozen_one_whose_features_are_cached(
    head_folder: Path, whisper_folder: Path, doge_folder: Path, tmp_path: Path
) -> None:
    assembled_with("from a folder", "lora", head_folder, whisper_folder, doge_folder).save(tmp_path / "saved")
    with pytest.raises(CheckpointError, match="speech encoder of type 'asr_doge' is not supported"):
        find_speech_encoder(tmp_path / "saved")
