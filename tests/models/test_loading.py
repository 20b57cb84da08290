"""A checkpoint is small, comes back as the model that was saved, and says what is wrong when it cannot."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoFeatureExtractor, AutoModelForSpeechSeq2Seq, AutoProcessor, AutoTokenizer, pipeline

from asr_doge.errors import CheckpointError, ConfigError
from asr_doge.models import (
    ASRDogeConfig,
    ASRDogeForConditionalGeneration,
    ASRDogeProcessor,
    LoadedModel,
    assemble_model,
    find_device,
    load_model,
)
from tests.models import tiny

WEIGHTS = "model.safetensors"
WAVEFORMS = [tiny.random_waveform(seconds, seed=i) for i, seconds in enumerate((0.8, 1.9, 0.3))]
ADAPTER = {f"adapter.layers.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}


def logits(loaded: LoadedModel) -> Tensor:
    batch = loaded.processor(WAVEFORMS, text=["the sea", "a fox and a dog", "it's nine"], sampling_rate=16_000)
    with torch.no_grad():
        output: Tensor = loaded.model(**batch).logits
    return output


def texts(loaded: LoadedModel, **options: Any) -> list[str]:
    batch = loaded.processor(WAVEFORMS, sampling_rate=16_000)
    return loaded.processor.batch_decode(loaded.model.generate(**batch, **{"max_new_tokens": 8} | options))


def heard_by_pipeline(folder: Path, waveforms: list[NDArray[np.float32]], **options: Any) -> list[str]:
    recognize: Any = pipeline("automatic-speech-recognition", model=str(folder), device="cpu")
    return [recognize(waveform, **options)["text"] for waveform in waveforms]


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture
def checkpoint(checkpoint_folder: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return shutil.copytree(checkpoint_folder, tmp_path / "checkpoint")


@pytest.mark.parametrize("language_model", ["doge", "llama"])
@pytest.mark.parametrize("choice", ["none", "lora", "full"])
def test_a_checkpoint_comes_back_as_it_was(
    granite_folder: Path, tmp_path: Path, choice: str, language_model: str
) -> None:
    vocabulary = len(tiny.tokenizer())
    random_model = tiny.doge_model(vocabulary) if language_model == "doge" else tiny.llama_model(vocabulary)
    folder = tiny.save_language_model(random_model, tmp_path / language_model)
    loaded = assemble_model(
        granite_folder,
        folder,
        device="cpu",
        dtype=torch.float64,
        train_language_model=choice,
        adapter_stack=2,
        adapter_output_norm=True,
        prompt_template="what is said? ",
    )
    untrained = logits(loaded)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    loaded.save(tmp_path / "checkpoint")
    again = load_model(tmp_path / "checkpoint", device="cpu", dtype=torch.float64)
    assert torch.equal(logits(again), logits(loaded))
    assert (logits(again) - untrained).abs().max() > 0.01
    assert texts(again) == texts(loaded)
    assert again.model.config.prompt_template == "what is said? "
    assert not again.model.training
    assert again.model.count_parameters() == loaded.model.count_parameters()

    stored = load_file(tmp_path / "checkpoint" / WEIGHTS)
    trained = {name for name, parameter in loaded.model.named_parameters() if parameter.requires_grad}
    assert stored.keys() == trained
    assert ("language_model.lm_head.weight" in stored) == (choice == "full" and language_model == "llama")


@pytest.mark.parametrize("language_model", ["doge", "llama"])
def test_a_fully_trained_language_model_needs_its_base_no_more(
    granite_folder: Path, tmp_path: Path, language_model: str
) -> None:
    vocabulary = len(tiny.tokenizer())
    random_model = tiny.doge_model(vocabulary) if language_model == "doge" else tiny.llama_model(vocabulary)
    base = tiny.save_language_model(random_model, tmp_path / "base")
    loaded = assemble_model(granite_folder, base, device="cpu", train_language_model="full")
    tiny.randomize(loaded.model.adapter, seed=1)
    loaded.save(tmp_path / "checkpoint")
    assert loaded.model.config.language_model == str(base)  # of the model in hand nothing is forgotten
    assert loaded.model.config.language_model_fingerprint
    shutil.rmtree(base)
    again = load_model(tmp_path / "checkpoint", device="cpu")
    config = again.model.config
    assert (config.language_model, config.language_model_fingerprint) == (None, None)
    assert config.speech_encoder == str(granite_folder)
    assert torch.equal(logits(again), logits(loaded))
    again.save(tmp_path / "again")
    assert load_file(tmp_path / "again" / WEIGHTS).keys() == load_file(tmp_path / "checkpoint" / WEIGHTS).keys()


def test_by_default_a_checkpoint_is_the_adapter_alone(checkpoint_folder: Path, assembled: LoadedModel) -> None:
    stored = load_file(checkpoint_folder / WEIGHTS)
    assert stored.keys() == ADAPTER
    adapter = assembled.model.count_parameters().adapter
    assert sum(tensor.numel() for tensor in stored.values()) == adapter
    assert (checkpoint_folder / WEIGHTS).stat().st_size < 8 * adapter + 2_000
    names = {path.name for path in checkpoint_folder.iterdir()}
    assert {"config.json", WEIGHTS, "tokenizer.json", "processor_config.json", "generation_config.json"} <= names


def test_weights_load_as_float32_unless_asked_otherwise(checkpoint_folder: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        options: dict[str, Any] = {} if dtype == torch.float32 else {"dtype": dtype}
        model = load_model(checkpoint_folder, device="cpu", **options).model
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        assert texts(load_model(checkpoint_folder, device="cpu", **options))


def test_an_encoder_without_its_weights_changes_nothing_but_memory(granite_folder: Path, doge_folder: Path) -> None:
    """What training from cached features loads: the encoder's shapes and labels, and none of its weights."""
    whole = assemble_model(granite_folder, doge_folder, device="cpu", dtype=torch.float64)
    weightless = assemble_model(
        granite_folder, doge_folder, device="cpu", dtype=torch.float64, skip_encoder_weights=True
    )
    weightless.model.adapter.load_state_dict(whole.model.adapter.state_dict())
    assert not [name for name, _ in weightless.model.named_parameters() if name.startswith("encoder.")]
    assert weightless.model.count_parameters() == whole.model.count_parameters()
    assert weightless.model.trained_keys() == whole.model.trained_keys()
    batch = whole.processor([tiny.random_waveform(0.7)], text=["one"], sampling_rate=16_000)
    labels = batch.pop("labels")
    speech = whole.model.encode(**batch).speech_embeddings
    losses = [loaded.model(speech_embeddings=speech, labels=labels).loss for loaded in (whole, weightless)]
    assert torch.equal(*losses)
    assert weightless.model.encoder.ctc_text([97, 98]) == "ab"
    with pytest.raises(ValueError, match="loaded without its weights"):
        weightless.model.encode(**batch)


def test_a_model_that_points_nowhere_carries_everything(tmp_path: Path) -> None:
    config = ASRDogeConfig(
        encoder_config=tiny.granite_config(),
        text_config=tiny.doge_model(40).config,
        speech_encoder=None,
        language_model=None,
        adapter_hidden_dim=16,
        prompt_ids=[0, 11],
    )
    model = ASRDogeForConditionalGeneration(config)
    tiny.randomize(model, seed=4)
    model = model.eval()
    features, mask = (tensor.float() for tensor in tiny.padded(tiny.random_clips([20, 45])))
    model.save_pretrained(tmp_path)
    again = ASRDogeForConditionalGeneration.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(features, mask).logits, model(features, mask).logits)
    stored = load_file(tmp_path / WEIGHTS)
    assert "language_model.lm_head.weight" not in stored  # tied to the embedding
    assert any(name.endswith("running_mean") for name in stored)
    assert sum(p.numel() for p in model.parameters() if not p.requires_grad) > 0
    assert {name for name, _ in model.named_parameters()} <= stored.keys()


def test_saving_takes_the_weights_it_is_given(assembled: LoadedModel, tmp_path: Path) -> None:
    """The Trainer gathers them from several devices, all of them, and hands them over."""
    gathered = {name: tensor + 1 for name, tensor in assembled.model.state_dict().items()}
    assembled.model.save_pretrained(tmp_path, state_dict=gathered)
    stored = load_file(tmp_path / WEIGHTS)
    assert stored.keys() == ADAPTER
    assert all(torch.equal(tensor, gathered[name]) for name, tensor in stored.items())


def test_saving_replaces_an_older_checkpoint_whole(assembled: LoadedModel, tmp_path: Path) -> None:
    folder = tmp_path / "best"
    folder.mkdir()
    (folder / "stale.txt").write_text("of an older run")
    assembled.save(folder)
    assert {path.name for path in tmp_path.iterdir()} == {"best"}
    assert not (folder / "stale.txt").exists()
    load_model(folder, device="cpu")


@pytest.mark.parametrize(
    "name", ["config.json", WEIGHTS, "tokenizer.json", "processor_config.json", "generation_config.json"]
)
def test_a_missing_file_is_named(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    with pytest.raises(CheckpointError, match=name.removesuffix(".json").replace("_", ".")):
        load_model(checkpoint, device="cpu")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "processor_config.json", "generation_config.json"])
@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_damaged_file_is_an_error_a_user_can_mend(checkpoint: Path, name: str, content: str) -> None:
    (checkpoint / name).write_text(content)
    with pytest.raises(CheckpointError) as caught:
        load_model(checkpoint, device="cpu")
    assert "\n" not in str(caught.value)
    assert str(checkpoint) in str(caught.value)


def test_a_tokenizer_file_of_another_kind_is_an_error_a_user_can_mend(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(CheckpointError, match="no usable tokenizer"):
        load_model(checkpoint, device="cpu")


def test_damaged_weights_are_named(checkpoint: Path) -> None:
    (checkpoint / WEIGHTS).write_bytes((checkpoint / WEIGHTS).read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load_model(checkpoint, device="cpu")


def test_missing_and_unexpected_weights_are_named(checkpoint: Path) -> None:
    weights = load_file(checkpoint / WEIGHTS)
    weights["adapter.extra"] = weights.pop("adapter.layers.0.bias")
    save_file(weights, checkpoint / WEIGHTS)
    with pytest.raises(
        CheckpointError, match=r"missing weights adapter\.layers\.0\.bias; unexpected .* adapter\.extra"
    ):
        load_model(checkpoint, device="cpu")


def test_a_configuration_that_does_not_fit_the_weights_is_an_error(checkpoint: Path) -> None:
    edit_json(checkpoint / "config.json", adapter_hidden_dim=100)
    with pytest.raises(CheckpointError, match=r"another shape .* adapter\.layers\.0\.bias"):
        load_model(checkpoint, device="cpu")


@pytest.mark.parametrize("part", ["speech_encoder", "language_model"])
def test_retrained_frozen_parts_are_noticed(checkpoint: Path, tmp_path: Path, part: str) -> None:
    changed = shutil.copytree(json.loads((checkpoint / "config.json").read_text())[part], tmp_path / "changed")
    edit_json(checkpoint / "config.json", **{part: str(changed)})
    load_model(checkpoint, device="cpu")  # the same weights elsewhere will do
    weights = {name: tensor * 1.001 for name, tensor in load_file(changed / WEIGHTS).items()}
    save_file(weights, changed / WEIGHTS, {"format": "pt"})
    with pytest.raises(CheckpointError, match="not those this checkpoint was trained with"):
        load_model(checkpoint, device="cpu")
    shutil.rmtree(changed)
    with pytest.raises(CheckpointError, match="changed"):
        load_model(checkpoint, device="cpu")


def test_other_models_are_not_taken_for_checkpoints(granite_folder: Path, doge_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="'granite_speech' model, not an ASR-Doge checkpoint"):
        load_model(granite_folder, device="cpu")
    with pytest.raises(CheckpointError, match="'doge' is not supported"):
        assemble_model(doge_folder, doge_folder, device="cpu")


def test_an_encoder_is_no_language_model(granite_folder: Path, whisper_folder: Path) -> None:
    with pytest.raises(CheckpointError):
        assemble_model(granite_folder, whisper_folder, device="cpu")


@pytest.mark.parametrize("name", ["nothing", "./nothing", "/nothing/at/all", "a/b/c", "", Path("nothing"), "~/models"])
def test_unknown_names_are_refused(name: str | Path, doge_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="unknown model"):
        load_model(name, device="cpu")
    with pytest.raises(CheckpointError, match="unknown model"):
        assemble_model(name, doge_folder, device="cpu")


def test_devices_are_checked_before_use() -> None:
    assert find_device("cpu") == torch.device("cpu")
    assert find_device() == find_device("auto")
    with pytest.raises(ConfigError, match="'gpu' is not a device"):
        find_device("gpu")
    absent = "mps" if torch.cuda.is_available() or not torch.backends.mps.is_available() else "cuda"
    with pytest.raises(ConfigError, match=f"'{absent}' is not available; this machine has"):
        find_device(absent)


def test_a_device_beyond_the_last_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert find_device("cuda:1") == torch.device("cuda:1")
    assert find_device("cuda") == torch.device("cuda")
    with pytest.raises(ConfigError, match="'cuda:9' is not available; the last of this machine is cuda:1"):
        find_device("cuda:9")


def test_auto_classes_know_the_checkpoint(checkpoint_folder: Path, assembled: LoadedModel) -> None:
    model = AutoModelForSpeechSeq2Seq.from_pretrained(checkpoint_folder, dtype=torch.float64)
    assert isinstance(model, ASRDogeForConditionalGeneration)
    processor = AutoProcessor.from_pretrained(checkpoint_folder)
    assert isinstance(processor, ASRDogeProcessor)
    assert texts(LoadedModel(model, processor)) == texts(assembled)
    parts = ASRDogeProcessor(
        AutoFeatureExtractor.from_pretrained(checkpoint_folder), AutoTokenizer.from_pretrained(checkpoint_folder)
    )
    assert texts(LoadedModel(model, parts)) == texts(assembled)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"max_new_tokens": 2}])
def test_transformers_pipeline_gives_the_same_text(checkpoint_folder: Path, options: dict[str, int]) -> None:
    loaded = load_model(checkpoint_folder, device="cpu")
    options = {"max_new_tokens": 8} | options
    heard = heard_by_pipeline(checkpoint_folder, WAVEFORMS, generate_kwargs=options)
    wanted = []
    for waveform in WAVEFORMS:
        ids = loaded.model.generate(**loaded.processor(waveform) | options)
        wanted.append(loaded.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)[0])
    assert heard == wanted
    assert len(set(heard)) > 1


def test_the_pipeline_decodes_as_we_do_without_being_told(checkpoint_folder: Path) -> None:
    """Its own default is five beams."""
    loaded = load_model(checkpoint_folder, device="cpu")
    ids = loaded.model.generate(**loaded.processor(WAVEFORMS[0]))
    wanted = loaded.processor.tokenizer.decode(ids[0], skip_special_tokens=True)
    assert heard_by_pipeline(checkpoint_folder, WAVEFORMS[:1]) == [wanted]


def test_threads_load_one_after_another(checkpoint_folder: Path) -> None:
    """Each replaces functions of torch while it builds a model; two at once failed, and left them replaced."""
    before = nn.Module.register_parameter, nn.init.uniform_
    with ThreadPoolExecutor(3) as threads:
        loaded = list(threads.map(lambda _: load_model(checkpoint_folder, device="cpu"), range(9)))
    assert (nn.Module.register_parameter, nn.init.uniform_) == before
    states = [one.model.state_dict() for one in loaded]
    assert all(torch.equal(state[name], states[0][name]) for state in states for name in states[0])
