"""Fusion weighs by the language model as it was before LoRA; the decoders that read speech use LoRA."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from asr_doge.choices import Quantization
from asr_doge.decoding.configuration import DecoderName, DecodingConfig
from asr_doge.decoding.recognition import Recognition, Recognizer
from asr_doge.models import LoadedModel, assemble_model, load_model
from asr_doge.models.lora import without_lora
from tests.models import tiny

CLIPS = [tiny.random_waveform(seconds, seed=i) for i, seconds in enumerate((0.7, 1.3))]


def assembled_with(
    choice: str, head_folder: Path, doge_folder: Path, dtype: torch.dtype = torch.float32
) -> LoadedModel:
    """The same head, adapter and frozen language model for every choice."""
    loaded = assemble_model(
        head_folder, doge_folder, device="cpu", dtype=dtype, adapter_stack=2, train_language_model=choice
    )
    tiny.randomize(loaded.model.adapter, seed=6)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, parameter in loaded.model.language_model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    loaded.model.generation_config.max_new_tokens = 12
    return loaded


@pytest.fixture(scope="module")
def trained(head_folder: Path, doge_folder: Path) -> LoadedModel:
    return assembled_with("lora", head_folder, doge_folder)


@pytest.fixture(scope="module")
def frozen(head_folder: Path, doge_folder: Path) -> LoadedModel:
    return assembled_with("none", head_folder, doge_folder)


def recognized(loaded: LoadedModel, decoder: DecoderName) -> list[Recognition]:
    n_best = 3 if decoder == "fusion" else 1
    config = DecodingConfig(decoder=decoder, n_best=n_best, timestamps="word", guard_silence=False)
    return Recognizer(loaded, config).recognize(CLIPS)


def test_fusion_is_that_of_the_language_model_before_lora(trained: LoadedModel, frozen: LoadedModel) -> None:
    found, expected = recognized(trained, "fusion"), recognized(frozen, "fusion")
    assert found == expected  # texts, scores and confidences
    assert all(len(one.alternatives) == 3 and one.words for one in found)
    assert all(word.log_prob is not None for one in found for word in one.words)


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_so_it_is_of_saved_and_rounded_models(
    quantization: Quantization, trained: LoadedModel, frozen: LoadedModel, tmp_path: Path
) -> None:
    found = []
    for name, loaded in (("trained", trained), ("frozen", frozen)):
        loaded.save(tmp_path / name)
        found.append(recognized(load_model(tmp_path / name, device="cpu", quantization=quantization), "fusion"))
    assert found[0] == found[1]
    assert (found[0] == recognized(trained, "fusion")) == (quantization == "none")


@pytest.mark.parametrize("decoder", ["greedy", "beam", "draft"])
def test_what_reads_speech_uses_lora_before_and_after_fusion(
    decoder: DecoderName, trained: LoadedModel, frozen: LoadedModel
) -> None:
    before = recognized(trained, decoder)
    recognized(trained, "fusion")
    assert recognized(trained, decoder) == before
    assert [one.text for one in before] != [one.text for one in recognized(frozen, decoder)]
    greedy = recognized(trained, "greedy")
    if decoder == "draft":
        assert [one.text for one in before] == [one.text for one in greedy]


def test_fusion_and_greedy_may_run_at_once(trained: LoadedModel) -> None:
    expected = {decoder: recognized(trained, decoder) for decoder in ("fusion", "greedy")}
    with ThreadPoolExecutor(2) as threads:
        at_once = [(decoder, threads.submit(recognized, trained, decoder)) for decoder in ("fusion", "greedy") * 4]
        assert all(result.result() == expected[decoder] for decoder, result in at_once)


def test_a_model_without_lora_has_its_weights_and_hooks(trained: LoadedModel, frozen: LoadedModel) -> None:
    model, plain = trained.model.language_model, frozen.model.language_model
    assert without_lora(plain) is plain
    view = without_lora(model)
    assert dict(view.named_parameters()).keys() == dict(plain.named_parameters()).keys()
    own = {id(parameter) for parameter in model.parameters()}
    assert all(id(parameter) in own for parameter in view.parameters())
    assert any(".lora_" in name for name, _ in model.named_parameters())
    passes: list[str] = []
    hook = model.register_forward_hook(lambda *_: passes.append("the model's"))
    with torch.no_grad():
        view(input_ids=torch.tensor([[0, 3]]))
        hook.remove()
        view(input_ids=torch.tensor([[0, 3]]))
    assert passes == ["the model's"]
