"""What of the frozen parts may be trained, and that nothing else is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM

from asr_doge.cli import main
from asr_doge.errors import ConfigError
from asr_doge.models import LoadedModel, assemble_model, load_encoder_alone, load_model
from tests.models import tiny, tiny_encoders


@pytest.mark.parametrize(("choice", "layers"), [("lora", 1), ("last_k", 1), ("last_k", 9)])
@pytest.mark.parametrize("family", ["granite", "whisper"])
def test_what_of_the_encoder_is_trained_gets_gradients_and_is_saved(
    request: pytest.FixtureRequest, doge_folder: Path, tmp_path: Path, family: str, choice: str, layers: int
) -> None:
    folder = request.getfixturevalue(f"{family}_folder")
    loaded = assemble_model(folder, doge_folder, device="cpu", train_encoder=choice, train_encoder_layers=layers)
    model = loaded.model
    batch = loaded.processor(
        [tiny.random_waveform(0.7), tiny.random_waveform(0.5)], ["the fox", "a dog"], sampling_rate=16_000
    )
    model.train()
    model(**batch).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} <= trained
    of_encoder = {name for name in trained if name.startswith("encoder.")}
    assert of_encoder
    assert all(".lora_" in name for name in of_encoder) == (choice == "lora")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in of_encoder:
                parameter.add_(0.01 * torch.randn_like(parameter))
    loaded.save(tmp_path / "saved")
    again = load_model(tmp_path / "saved", device="cpu").model
    model.eval()
    assert tiny.relative_difference(again(**batch).logits, model(**batch).logits) < 1e-5  # LoRA is merged
    resumed = type(model).from_pretrained(tmp_path / "saved")
    assert torch.equal(resumed(**batch).logits, model(**batch).logits)
    clip = [tiny.random_waveform(0.7)]
    alone = load_encoder_alone(tmp_path / "saved", device="cpu").encode(clip).speech_embeddings
    assert torch.equal(
        alone, load_model(tmp_path / "saved", device="cpu").speech_encoder.encode(clip).speech_embeddings
    )
    assert not torch.equal(alone, load_encoder_alone(folder, device="cpu").encode(clip).speech_embeddings)


@pytest.mark.parametrize(
    ("family", "choice", "stack"),
    [
        ("wav2vec2", "lora", 50),
        ("wav2vec2", "last_k", 50),
        ("hubert", "lora", 50),
        ("wavlm", "lora", 50),
        ("wavlm-large", "lora", 50),
        ("parakeet", "lora", 1),
        ("granite", "lora", 1),
        ("seanet", "last_k", 20),
    ],
)
def test_a_head_of_the_encoders_own_is_not_trained_beside_it(
    family: str, choice: str, stack: int, doge_folder: Path, tmp_path: Path
) -> None:
    """No loss reaches it, and several processes wait for the gradient of whatever is trained."""
    folder = tiny_encoders.save(family, tmp_path / family)
    loaded = assemble_model(folder, doge_folder, device="cpu", adapter_stack=stack, train_encoder=choice)
    assert loaded.model.encoder.has_ctc
    batch = loaded.processor([tiny.random_waveform(0.7)], ["the fox"], sampling_rate=16_000)
    model = loaded.model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.add_(0.1)  # else half of them have no gradient at first
    model.train()
    model(**batch).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any(name.startswith("encoder.") for name in trained)
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == trained
    loaded.save(tmp_path / "saved")
    again = load_model(tmp_path / "saved", device="cpu").model
    model.eval()
    assert tiny.relative_difference(again(**batch).logits, model(**batch).logits) < 1e-5
    load_encoder_alone(tmp_path / "saved", device="cpu")


@pytest.mark.parametrize("family", ["wav2vec2", "parakeet", "granite", "seanet"])
def test_a_checkpoint_trained_from_cached_features_of_an_encoder_with_a_head_loads(
    family: str, doge_folder: Path, tmp_path: Path
) -> None:
    folder = tiny_encoders.save(family, tmp_path / family)
    loaded = assemble_model(folder, doge_folder, device="cpu", skip_encoder_weights=True)
    model = loaded.model
    assert {name for name, _ in model.named_parameters() if model.is_trained(name)} == {
        f"adapter.{name}" for name, _ in model.adapter.named_parameters()
    }
    loaded.save(tmp_path / "saved")
    again = load_model(tmp_path / "saved", device="cpu").model
    assert again.encoder.has_ctc
    assert again.count_parameters() == model.count_parameters()


def test_an_encoder_of_which_lora_would_train_nothing_is_refused(doge_folder: Path, tmp_path: Path) -> None:
    seanet = tiny_encoders.save("seanet", tmp_path)
    with pytest.raises(ConfigError, match=r"no linear layer to train, .*--train_encoder last_k"):
        assemble_model(seanet, doge_folder, device="cpu", adapter_stack=20, train_encoder="lora")
    lora = {"r": 2, "target_modules": ["lm_head"]}
    with pytest.raises(ConfigError, match=r"lora_targets \['lm_head'\]"):
        assemble_model(seanet, doge_folder, device="cpu", adapter_stack=20, train_encoder="lora", lora=lora)


@pytest.mark.parametrize("choice", ["lora", "last_k"])
def test_what_was_trained_can_be_rounded(choice: str, tmp_path: Path) -> None:
    lora = {"r": 32, "target_modules": "all-linear"}
    loaded = assemble_model(
        "nano/encoder", "nano/language_model", train_encoder=choice, train_language_model="lora", lora=lora
    )
    loaded.save(tmp_path / "saved")
    batch = loaded.processor([tiny.random_waveform(0.7)], ["one two"], sampling_rate=16_000)
    with torch.no_grad():
        whole, rounded = (
            load_model(tmp_path / "saved", device="cpu", quantization=kind).model(**batch).logits
            for kind in ("none", "int8")
        )
    assert 0 < tiny.relative_difference(rounded, whole) < 0.2


def test_more_layers_train_more(granite_folder: Path, doge_folder: Path) -> None:
    counts = [
        assemble_model(
            granite_folder, doge_folder, device="cpu", train_encoder="last_k", train_encoder_layers=layers
        ).model.count_parameters()
        for layers in (1, 2)
    ]
    of_encoder = [count.trainable - count.adapter for count in counts]
    assert 0 < of_encoder[0] < of_encoder[1] < counts[1].encoder


def test_lora_is_as_large_and_where_it_is_told(granite_folder: Path, doge_folder: Path) -> None:
    def trained(**lora: Any) -> dict[str, torch.Size]:
        model = assemble_model(granite_folder, doge_folder, device="cpu", train_language_model="lora", lora=lora).model
        return {name: p.shape for name, p in model.named_parameters() if ".lora_" in name}

    shapes = trained(r=3, lora_alpha=1.0, target_modules=["q_proj"])
    assert shapes
    assert all("q_proj" in name and 3 in shape for name, shape in shapes.items())
    with pytest.raises(ConfigError, match=r"lora_targets.*no_such_layer") as caught:
        trained(r=3, target_modules=["no_such_layer"])
    assert "\n" not in str(caught.value)


def save_with_lora(granite_folder: Path, doge_folder: Path, folder: Path) -> LoadedModel:
    loaded = assemble_model(granite_folder, doge_folder, device="cpu", dtype=torch.float64, train_language_model="lora")
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(0.1 * torch.randn_like(parameter))
    loaded.save(folder)
    return loaded


def test_merged_lora_says_the_same_without_lora(
    granite_folder: Path, doge_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = save_with_lora(granite_folder, doge_folder, tmp_path / "lora")
    flags = ["--checkpoint_dir", str(tmp_path / "lora"), "--output_dir", str(tmp_path / "merged")]
    assert main(["merge", *flags]) == 0
    merged, before = (
        load_model(tmp_path / name, device="cpu", dtype=torch.float64).model for name in ("merged", "lora")
    )
    assert not any(".lora_" in name for name, _ in merged.named_parameters())
    batch = loaded.processor([tiny.random_waveform(0.7)], ["the fox"], sampling_rate=16_000)
    difference = (merged(**batch).logits - before(**batch).logits).abs().max()
    assert difference < 1e-5  # merged in float32
    capsys.readouterr()
    assert main(["merge", *flags]) == 2
    assert "exists: choose a new folder" in capsys.readouterr().err
    assert main(["merge", "--checkpoint_dir", "nano", "--output_dir", str(tmp_path / "new")]) == 2
    assert "there is no LoRA of the language model" in capsys.readouterr().err


def test_exported_lora_is_loaded_by_peft_onto_the_language_model(
    granite_folder: Path, doge_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = save_with_lora(granite_folder, doge_folder, tmp_path / "lora").model.language_model
    exported = tmp_path / "peft"
    assert main(["merge", f"--checkpoint_dir={tmp_path / 'lora'}", f"--output_dir={exported}", "--for_peft"]) == 0
    assert PeftConfig.from_pretrained(str(exported)).base_model_name_or_path == str(doge_folder)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(doge_folder, dtype=torch.float64)
        before = plain(input_ids=ids).logits
        logits = PeftModel.from_pretrained(plain, str(exported)).eval()(input_ids=ids).logits
        assert torch.allclose(logits, trained(input_ids=ids).logits, atol=1e-4)  # exported in float32
    assert not torch.allclose(logits, before)
    assert main(["merge", "--checkpoint_dir=nano", f"--output_dir={tmp_path / 'new'}", "--for_peft"]) == 2
    assert "there is no LoRA of the language model" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
