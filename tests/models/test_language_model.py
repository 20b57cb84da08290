"""Language models load strictly, under old names too, and padding on the left does not reach them."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from asr_doge.choices import Quantization
from asr_doge.errors import CheckpointError
from asr_doge.models import assemble_model
from asr_doge.models.checkpoints import find_model, load_model_config
from asr_doge.models.language_model import load_language_model
from tests.models import tiny

OLD_NAMES = {
    "embed_tokens": "word_embed",
    "input_layernorm": "pre_layernorm",
    "post_attention_layernorm": "post_layernorm",
    "input_residual": "pre_residual.weight",
    "post_attention_residual": "post_residual.weight",
    r"\bmlp\b": "feed_forward",
    r"model\.norm\b": "model.final_layernorm",
}
IDS = torch.tensor([[5, 40, 7, 120, 9]])


def load(folder: Path, quantization: Quantization = "none") -> PreTrainedModel:
    reference = find_model(folder)
    dtype = torch.float64 if quantization == "none" else torch.float32
    return load_language_model(reference, load_model_config(reference), dtype, quantization)


def logits(model: PreTrainedModel, ids: Tensor = IDS, mask: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(input_ids=ids, attention_mask=mask).logits
    return output


def change_weights(source: Path, target: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    shutil.copytree(source, target)
    save_file(change(load_file(source / "model.safetensors")), target / "model.safetensors", {"format": "pt"})
    return target


def test_old_key_names_load_to_the_same_model(doge_folder: Path, tmp_path: Path) -> None:
    def rename(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        renamed = {}
        for key, tensor in weights.items():
            for today, old in OLD_NAMES.items():
                key = re.sub(today, old, key)
            renamed[key] = tensor
        assert {"model.word_embed.weight", "model.layers.0.pre_residual.weight"} <= renamed.keys()
        assert sum(key in weights for key in renamed) < len(weights) * 0.6
        return renamed

    old = change_weights(doge_folder, tmp_path / "old", rename)
    assert torch.equal(logits(load(old)), logits(load(doge_folder)))


def sharded(source: Path, folder: Path) -> Path:
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(folder, max_shard_size="10KB")
    return folder


def head_stored_too(source: Path, folder: Path) -> Path:
    return change_weights(
        source, folder, lambda weights: weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}
    )


@pytest.mark.parametrize("stored_as", [sharded, head_stored_too])
def test_however_it_is_stored_it_is_the_same_model(
    doge_folder: Path, tmp_path: Path, stored_as: Callable[[Path, Path], Path]
) -> None:
    folder = stored_as(doge_folder, tmp_path / "other")
    assert (folder / "model.safetensors.index.json").exists() == (stored_as is sharded)
    assert torch.equal(logits(load(folder)), logits(load(doge_folder)))
    assert torch.equal(logits(load(folder, "int8")), logits(load(doge_folder, "int8")))


def test_the_attention_is_the_one_that_bears_left_padding(doge_folder: Path) -> None:
    model = load(doge_folder)
    padded = torch.cat([torch.full((1, 4), 2), IDS], dim=1)
    mask = torch.tensor([[0] * 4 + [1] * 5])
    with_padding = logits(model, padded, mask)[:, 4:]
    assert tiny.relative_difference(with_padding, logits(model)) < 1e-5
    assert logits(model, padded)[:, 4:].sub(logits(model)).abs().max() > 0.05


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_a_missing_weight_is_named(doge_folder: Path, tmp_path: Path, quantization: Quantization) -> None:
    def without_one(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        del weights["model.layers.1.mlp.up_proj.weight"]
        return weights

    with pytest.raises(CheckpointError, match=r"missing weights model\.layers\.1\.mlp\.up_proj\.weight"):
        load(change_weights(doge_folder, tmp_path / "model", without_one), quantization)


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_an_unexpected_weight_is_named(doge_folder: Path, tmp_path: Path, quantization: Quantization) -> None:
    def with_one_more(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return weights | {"model.surprise.weight": torch.zeros(2)}

    with pytest.raises(CheckpointError, match=r"unexpected weights model\.surprise\.weight"):
        load(change_weights(doge_folder, tmp_path / "model", with_one_more), quantization)


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_a_weight_of_another_shape_is_an_error_that_names_it(
    doge_folder: Path, tmp_path: Path, quantization: Quantization
) -> None:
    def narrower(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return weights | {"model.norm.weight": torch.zeros(3)}

    with pytest.raises(CheckpointError, match=r"another shape .*: model\.norm\.weight$"):
        load(change_weights(doge_folder, tmp_path / "model", narrower), quantization)


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_a_damaged_file_is_an_error(doge_folder: Path, tmp_path: Path, quantization: Quantization) -> None:
    folder = tmp_path / "model"
    shutil.copytree(doge_folder, folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError):
        load(folder, quantization)


def test_pickled_weights_are_not_read(doge_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(doge_folder, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError):
        load(folder)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_another_family_works(granite_folder: Path, tmp_path: Path, family: str) -> None:
    make = {"llama": tiny.llama_model, "gpt2": tiny.gpt2_model}[family]
    folder = tiny.save_language_model(make(len(tiny.tokenizer())), tmp_path / family)
    loaded = assemble_model(granite_folder, folder, device="cpu", dtype=torch.float64)
    assert loaded.model.language_model.config.model_type == family
    tiny.randomize(loaded.model.adapter, seed=1)
    waveforms = [tiny.random_waveform(seconds, seed=i) for i, seconds in enumerate((0.4, 1.3))]
    batch = loaded.processor(waveforms, text=["the sea"] * 2)
    with torch.no_grad():
        logits = loaded.model(**batch).logits
        generated = loaded.model.generate(**batch, max_new_tokens=5).tolist()
        for row, waveform in enumerate(waveforms):
            single = loaded.processor(waveform, text=["the sea"])
            assert tiny.relative_difference(logits[row], loaded.model(**single).logits[0]) < 1e-5
            ids = loaded.model.generate(**single, max_new_tokens=5)[0].tolist()
            assert generated[row][: len(ids)] == ids


def test_a_chat_models_own_generation_settings_do_not_reach_transcripts(
    granite_folder: Path, doge_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "chatty"
    shutil.copytree(doge_folder, folder)
    settings = {"do_sample": True, "temperature": 5.0, "repetition_penalty": 3.0, "no_repeat_ngram_size": 1}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    texts = []
    for language_model in (doge_folder, folder):
        loaded = assemble_model(granite_folder, language_model, device="cpu", dtype=torch.float64)
        tiny.randomize(loaded.model.adapter, seed=1)
        texts.append(loaded.model.generate(**loaded.processor(tiny.random_waveform(1)), max_new_tokens=12).tolist())
    assert texts[0] == texts[1]


def test_a_tokenizer_without_eos_or_pad_is_refused(granite_folder: Path, doge_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(doge_folder, folder)
    tokenizer_config = json.loads((folder / "tokenizer_config.json").read_text())
    del tokenizer_config["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    with pytest.raises(CheckpointError, match="padding token"):
        assemble_model(granite_folder, folder, device="cpu")
