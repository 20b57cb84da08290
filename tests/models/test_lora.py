"""LoRA to be used is peft's, from which it differs only in what it imports, and merged it is a plain layer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from asr_doge.errors import ConfigError
from asr_doge.models import assemble_model
from asr_doge.models.lora import LoRALinear, add_lora_for_inference, add_trainable_lora, merge_updates
from asr_doge.models.merging import merge_lora
from tests.models import tiny

PARTS: dict[str, Callable[[], nn.Module]] = {
    "doge": lambda: tiny.doge_model(40),
    "llama": lambda: tiny.llama_model(40),
    "gpt2": lambda: tiny.gpt2_model(40),
    "whisper": lambda: tiny.whisper_model().model.encoder,
    "granite": lambda: tiny.granite_model().model.encoder,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "everywhere": {"r": 3, "lora_alpha": 5.0, "lora_dropout": 0.5, "target_modules": "all-linear"},
    "queries": {"r": 5, "lora_alpha": 2, "target_modules": ["q_proj", "to_q", "c_attn"]},
    "peft's defaults": {"target_modules": ["q_proj", "to_q", "c_attn"]},
    "scaled otherwise": {"r": 4, "use_rslora": True, "target_modules": ["q_proj", "to_q", "c_attn"]},
    "a pattern": {"r": 4, "target_modules": r".*(q_proj|to_q|c_attn)"},
}


def output(part: Any, name: str) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        if name == "whisper":
            given = torch.randn(1, 80, 3000, generator=generator, dtype=torch.float64)
        elif name == "granite":
            given = torch.randn(1, 50, 160, generator=generator, dtype=torch.float64)
        else:
            logits: Tensor = part(input_ids=torch.arange(3, 20)[None]).logits
            return logits
        states: Tensor = part(given).last_hidden_state
        return states


def with_updates(name: str, options: dict[str, Any], put: Callable[[nn.Module, dict[str, Any]], None]) -> nn.Module:
    part = PARTS[name]().double()
    put(part, options)
    part = part.double().eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for own, parameter in sorted(part.named_parameters()):
            if ".lora_" in own:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return part


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("name", PARTS)
def test_what_is_used_is_what_peft_trained(name: str, kind: str) -> None:
    trained, used = (with_updates(name, OPTIONS[kind], put) for put in (add_trainable_lora, add_lora_for_inference))
    of_peft = [layer for layer in trained.modules() if isinstance(layer, BaseTunerLayer)]
    own = [layer for layer in used.modules() if isinstance(layer, LoRALinear | BaseTunerLayer)]
    assert len(of_peft) == len(own) > 1
    rare = name == "gpt2" or kind in ("scaled otherwise", "a pattern")
    assert all(isinstance(layer, BaseTunerLayer) == rare for layer in own)
    shapes = [{own: weight.shape for own, weight in part.state_dict().items()} for part in (trained, used)]
    assert shapes[0] == shapes[1]
    expected, plain = output(trained, name), output(PARTS[name]().double(), name)
    assert tiny.relative_difference(output(used, name), expected) < 1e-12
    assert tiny.relative_difference(expected, plain) > 0.1
    weights = {own: weight.clone() for own, weight in used.state_dict().items() if ".lora_" in own}
    updates = merge_updates(used)
    assert updates.keys() == weights.keys()
    assert all(torch.equal(updates[own], weight) for own, weight in weights.items())
    assert used.state_dict().keys() == PARTS[name]().state_dict().keys()
    assert not any(isinstance(layer, LoRALinear | BaseTunerLayer) for layer in used.modules())
    assert tiny.relative_difference(output(used, name), expected) < 1e-9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_merged_weights_are_rounded_once(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    layer = nn.Sequential(nn.Linear(7, 9)).to(dtype)
    add_lora_for_inference(layer, {"r": 2, "lora_alpha": 3, "target_modules": ["0"]})
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    state = {name: weight.double() for name, weight in layer.state_dict().items()}
    merge_updates(layer)
    exact = state["0.base_layer.weight"] + 1.5 * state["0.lora_B.default.weight"] @ state["0.lora_A.default.weight"]
    spacing = torch.finfo(dtype).eps * exact.abs().clamp(min=0.25)
    merged = layer.get_parameter("0.weight")
    assert merged.dtype == dtype
    assert ((merged.double() - exact).abs() <= 0.51 * spacing + 1e-6).all()


def test_weights_of_a_file_are_merged_in_their_places(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.ones(9, 7), "bias": torch.zeros(9)}, path)
    before = path.read_bytes()
    layer = nn.Sequential(nn.Linear(7, 9, device="meta"))
    layer[0].load_state_dict(load_file(path), assign=True)
    mapped = layer.get_parameter("0.weight").data_ptr()
    add_lora_for_inference(layer, {"r": 2, "lora_alpha": 2, "target_modules": ["0"]})
    for name, parameter in layer.named_parameters():
        if "lora_" in name:
            nn.init.ones_(parameter)
    merge_updates(layer)
    merged = layer.get_parameter("0.weight")
    assert torch.equal(merged, torch.full((9, 7), 3.0))
    assert merged.data_ptr() == mapped  # not beside the pages of the file, which were twice the memory
    assert path.read_bytes() == before


def test_layers_that_are_not_there_are_named() -> None:
    for put in (add_trainable_lora, add_lora_for_inference):
        with pytest.raises(ConfigError, match=r"lora_targets.*no_such_layer"):
            put(tiny.doge_model(40), {"r": 3, "target_modules": ["no_such_layer"]})


def test_lora_of_a_tied_output_layer_is_not_merged() -> None:
    """Merging unties it, and a checkpoint of the merged model would give it the embedding's weights again."""
    loaded = assemble_model(
        "nano/encoder",
        "nano/language_model",
        device="cpu",
        train_language_model="lora",
        lora={"target_modules": ["lm_head"]},
    )
    with pytest.raises(ConfigError, match="token embedding's too"):
        merge_lora(loaded.model)


def test_lora_to_be_used_has_the_sizes_of_its_layer() -> None:
    part = nn.Sequential(nn.Linear(3, 7))
    add_lora_for_inference(part, {"r": 2, "target_modules": ["0"]})
    assert isinstance(part[0], LoRALinear)
    assert (part[0].in_features, part[0].out_features) == (3, 7)
