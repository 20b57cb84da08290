"""Early Doge uploads give the logits of the code they came with: whole, rounded, cached, padded, trained, exported."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from onnxruntime import InferenceSession
from safetensors.numpy import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from asr_doge.choices import Quantization
from asr_doge.decoding.draft import Verifier
from asr_doge.errors import CheckpointError
from asr_doge.models import LoadedModel, assemble_model, load_model
from asr_doge.models.checkpoints import find_model, load_model_config
from asr_doge.models.early_doge import EarlyDogeConfig, EarlyDogeForCausalLM
from asr_doge.models.encoders.loading import settings
from asr_doge.models.export import LANGUAGE_MODEL_GRAPH, SPEECH_TOKEN, LanguageModelGraph, write_graph
from asr_doge.models.language_model import load_language_model
from asr_doge.models.merging import merge_lora
from tests.models import early_doge, tiny
from tests.models.early_doge import Array, Shape
from tests.models.tracing import without_collections

IDS = [5, 40, 7, 120, 9, 300, 11]
SHAPES = {
    "grouped": Shape(),
    "a key and value for each query": Shape(heads=2, kv_heads=2),
    "one key and value for all": Shape(kv_heads=1),
    "past the window": Shape(window=3),
    "own head": Shape(is_tied=False),
    "with biases": Shape(has_bias=True),
}
TODAYS_NAMES = {
    "word_embed": "embed_tokens",
    "pre_layernorm": "input_layernorm",
    "post_layernorm": "post_attention_layernorm",
    "pre_residual.weight": "input_residual",
    "post_residual.weight": "post_attention_residual",
    "feed_forward": "mlp",
    "final_layernorm": "norm",
}
"""As the publisher's convert_doge_weights_to_hf.py renames them, and nothing else."""


def load(folder: Path, dtype: torch.dtype = torch.float64, quantization: Quantization = "none") -> PreTrainedModel:
    reference = find_model(folder)
    return load_language_model(reference, load_model_config(reference), dtype, quantization)


def logits(model: PreTrainedModel, ids: Tensor, **options: Tensor) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(input_ids=ids, **options).logits
    return output


def relative_error(found: Tensor, expected: Array) -> float:
    return float(np.linalg.norm(found.double().numpy() - expected) / np.linalg.norm(expected))


@pytest.fixture(scope="module")
def upload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return early_doge.save(early_doge.random_weights(Shape()), Shape(), tmp_path_factory.mktemp("early") / "doge")


@pytest.fixture(scope="module")
def expected() -> Array:
    return early_doge.logits(early_doge.as_stored(early_doge.random_weights(Shape())), Shape(), IDS)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@pytest.mark.parametrize("converted", [False, True], ids=["as uploaded", "converted"])
def test_the_logits_are_those_of_the_code_it_was_published_with(shape: Shape, converted: bool, tmp_path: Path) -> None:
    weights = early_doge.random_weights(shape)
    names = dict.fromkeys(weights, "")
    for name in weights:
        names[name] = name
        for old, new in TODAYS_NAMES.items() if converted else ():
            names[name] = names[name].replace(old, new)
    folder = early_doge.save({names[name]: weight for name, weight in weights.items()}, shape, tmp_path / "doge")
    model = load(folder)
    assert isinstance(model, EarlyDogeForCausalLM)
    expected = early_doge.logits(early_doge.as_stored(weights), shape, IDS)
    assert relative_error(logits(model, torch.tensor([IDS]))[0], expected) < 1e-5
    assert relative_error(logits(load(folder, torch.float32), torch.tensor([IDS]))[0], expected) < 1e-5


@given(cuts=st.lists(st.integers(1, len(IDS) - 1), unique=True, max_size=4), padding=st.integers(0, 3))
@hypothesis_settings(max_examples=15)
def test_read_in_pieces_after_padding_it_is_the_same(
    upload: Path, expected: Array, cuts: list[int], padding: int
) -> None:
    model = load(upload)
    other = [9] * (len(IDS) + padding)  # a longer neighbour
    mask = torch.tensor([[0] * padding + [1] * len(IDS), [1] * len(other)])
    ids = torch.tensor([[2] * padding + IDS, other])
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    cache, found = None, []
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(IDS)], strict=True):
        part = slice(start + padding if start else 0, end + padding)
        with torch.no_grad():
            output = model(
                input_ids=ids[:, part],
                attention_mask=mask[:, : end + padding],
                position_ids=positions[:, part],
                past_key_values=cache,
                use_cache=True,
            )
        cache = output.past_key_values
        found.append(output.logits[0])
    assert relative_error(torch.cat(found)[padding:], expected) < 1e-5


def test_rounded_it_is_the_restatement_of_its_rounded_weights(upload: Path) -> None:
    model = load(upload, torch.float32, "int8")
    assert isinstance(model, EarlyDogeForCausalLM)
    weights = early_doge.random_weights(Shape())
    expected = early_doge.logits(weights, Shape(), IDS)
    error = relative_error(logits(model, torch.tensor([IDS]))[0], expected)
    assert 1e-4 < error < 0.05  # 1/127 of the greatest of each row, through two layers


def test_what_is_saved_comes_back(upload: Path, expected: Array, tmp_path: Path) -> None:
    load(upload).save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "config.json").read_text())
    assert saved["model_type"] == "early_doge"
    assert "auto_map" not in saved
    assert relative_error(logits(load(tmp_path / "again"), torch.tensor([IDS]))[0], expected) < 1e-5


@pytest.fixture(scope="module")
def texts_and_speech() -> tuple[list[str], list[np.ndarray]]:
    return ["the sea", "she sells shells"], [tiny.random_waveform(seconds, seed=1) for seconds in (0.4, 1.3)]


def assembled(granite_folder: Path, upload: Path, **options: Any) -> LoadedModel:
    loaded = assemble_model(granite_folder, upload, device="cpu", dtype=torch.float64, **options)
    tiny.randomize(loaded.model.adapter, seed=1)
    return loaded


@pytest.mark.parametrize("train_language_model", ["none", "lora", "full"])
def test_it_is_trained_saved_and_loaded_like_any_other(
    granite_folder: Path,
    upload: Path,
    tmp_path: Path,
    texts_and_speech: tuple[list[str], list[np.ndarray]],
    train_language_model: str,
) -> None:
    loaded = assembled(granite_folder, upload, train_language_model=train_language_model)
    texts, waveforms = texts_and_speech
    batch = loaded.processor(waveforms, text=texts)
    trained = [parameter for parameter in loaded.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.01)
    losses = []
    for _ in range(2):
        loss = loaded.model.train()(**batch).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[1] < losses[0]
    loaded.model.eval()
    loaded.save(tmp_path / "checkpoint")
    again = load_model(tmp_path / "checkpoint", device="cpu", dtype=torch.float64)
    assert isinstance(again.model.language_model.config, EarlyDogeConfig)
    before, after = (settings(each.model.config.text_config.to_dict()) for each in (loaded, again))
    assert before == after  # or training could not be resumed
    with torch.no_grad():
        for row, waveform in enumerate(waveforms):
            single = again.processor([waveform], text=texts[row : row + 1])
            found, whole = again.model(**single).logits[0], loaded.model(**batch).logits[row]
            assert tiny.relative_difference(found, whole[-len(found) :]) < 1e-5
    if train_language_model == "lora":
        merge_lora(loaded.model)
        with torch.no_grad():
            assert tiny.relative_difference(loaded.model(**batch).logits, again.model(**batch).logits) < 1e-5
    rounded = load_model(tmp_path / "checkpoint", device="cpu", quantization="int8")
    with torch.no_grad():
        assert tiny.relative_difference(rounded.model(**batch).logits, again.model(**batch).logits) < 1.0


def test_its_drafts_give_what_greedy_search_does(granite_folder: Path, upload: Path) -> None:
    loaded = assembled(granite_folder, upload)
    waveforms = [tiny.random_waveform(seconds, seed=1) for seconds in (0.4, 1.3)]
    batch = loaded.processor(waveforms)
    greedy = loaded.model.generate(**batch, max_new_tokens=8).tolist()
    speech = loaded.model.encode(batch["input_features"], batch["attention_mask"])
    verifier = Verifier(loaded.model, frozenset([1]), lambda token: str(token))
    written = verifier.decode(speech, [[*greedy[0][:3], 9, 9], []], [8, 8])
    for row, tokens in zip(written, greedy, strict=True):
        assert row.tokens == tokens[: len(row.tokens)]
        assert len(row.tokens) == 8 or row.tokens[-1] == 1


def test_its_graph_gives_its_logits(granite_folder: Path, tmp_path: Path) -> None:
    shape = Shape(layers=1)
    weights = early_doge.random_weights(shape)
    model = assemble_model(granite_folder, early_doge.save(weights, shape, tmp_path / "doge"), device="cpu").model
    cache = torch.zeros(shape.layers, 2, 2, shape.kv_heads, 5, shape.head_dim)
    speech = torch.zeros(2, 4, shape.hidden)
    example = (torch.tensor([[3, SPEECH_TOKEN, 4]] * 2), speech, torch.ones(2, 8, dtype=torch.long), cache)
    with without_collections():
        write_graph(LanguageModelGraph(model), example, tmp_path / LANGUAGE_MODEL_GRAPH)
    session = InferenceSession(tmp_path / LANGUAGE_MODEL_GRAPH)
    empty = np.zeros((*cache[:, :, :1, :, :0].shape,), dtype=np.float32)
    feed = {"token_ids": np.array([IDS]), "speech": speech[:1, :1].numpy(), "cache": empty}
    found, _ = session.run(None, {**feed, "attention_mask": np.ones((1, len(IDS)), dtype=np.int64)})
    expected = early_doge.logits(early_doge.as_stored(weights), shape, IDS)
    assert relative_error(torch.from_numpy(found[0]), expected) < 1e-5


def changed(upload: Path, folder: Path, change: Callable[[dict[str, Array]], None]) -> Path:
    shutil.copytree(upload, folder)
    weights = load_file(upload / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    return folder


def with_norms(weights: dict[str, Array]) -> None:
    weights["model.layers.0.self_attn.q_norm.weight"] = np.ones(8, dtype=np.float32)


def with_a_row_less(weights: dict[str, Array]) -> None:
    weights["model.layers.1.self_attn.A"] = weights["model.layers.1.self_attn.A"][:3].copy()


def without_a_projection(weights: dict[str, Array]) -> None:
    del weights["model.layers.1.self_attn.dt_proj.weight"]


def with_a_wider_projection(weights: dict[str, Array]) -> None:
    weights["model.layers.0.self_attn.dt_proj.weight"] = np.ones((4, 20), dtype=np.float32)


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_norms, r"neither layout of Doge.*: model\.layers\.0\.self_attn\.A \[4\], .*dt_proj\.weight \[4, 16\]"),
        (with_a_row_less, r"neither layout of Doge.*: model\.layers\.1\.self_attn\.A \[3\]$"),
        (without_a_projection, r"missing weights model\.layers\.1\.self_attn\.dt_proj\.weight$"),
        (with_a_wider_projection, r"another shape .*: model\.layers\.0\.self_attn\.dt_proj\.weight$"),
    ],
)
def test_what_fits_neither_layout_is_named(
    upload: Path,
    tmp_path: Path,
    quantization: Quantization,
    change: Callable[[dict[str, Array]], None],
    message: str,
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(changed(upload, tmp_path / "doge", change), torch.float32, quantization)
