"""Models of the hub: fetched once, only what is needed, then read without a network; without either, one clear line.

The hub here is a server on this machine that speaks its protocol.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest

from asr_doge.errors import CheckpointError
from asr_doge.models import LoadedModel, assemble_model, load_model
from asr_doge.models.checkpoints import find_model
from tests.models import tiny
from tests.models.hub_server import COMMIT, Hub


@pytest.fixture
def hub(
    granite_folder: Path, doge_folder: Path, checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Hub]:
    started = Hub({"acme/granite": granite_folder, "acme/doge": doge_folder, "acme/asr": checkpoint_folder})
    started.connect(tmp_path / "cache", monkeypatch)
    yield started
    started.unplug()


def texts(loaded: LoadedModel) -> list[str]:
    batch = loaded.processor([tiny.random_waveform(0.7), tiny.random_waveform(1.1, seed=1)])
    return loaded.processor.batch_decode(loaded.model.generate(**batch, max_new_tokens=6))


def test_models_of_the_hub_are_pinned_and_then_work_offline(hub: Hub, tmp_path: Path) -> None:
    loaded = assemble_model("acme/granite", "acme/doge", device="cpu")
    assert loaded.model.config.speech_encoder == "acme/granite"
    assert loaded.model.config.speech_encoder_revision == COMMIT
    assert loaded.model.config.language_model_revision == COMMIT
    tiny.randomize(loaded.model.adapter, seed=1)
    heard = texts(loaded)
    loaded.save(tmp_path / "checkpoint")
    assert hub.downloaded.count("acme/granite/model.safetensors") == 1

    assert texts(load_model(tmp_path / "checkpoint", device="cpu")) == heard
    assert hub.downloaded.count("acme/granite/model.safetensors") == 1
    hub.unplug()
    assert texts(load_model(tmp_path / "checkpoint", device="cpu")) == heard


def test_a_checkpoint_of_the_hub_loads_by_its_id(hub: Hub, checkpoint_folder: Path) -> None:
    assert texts(load_model("acme/asr", device="cpu")) == texts(load_model(checkpoint_folder, device="cpu"))
    assert "acme/asr/config.json" in hub.downloaded


def test_a_model_the_hub_does_not_have_is_named(hub: Hub, doge_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="model 'acme/nothing' is neither on this machine nor"):
        load_model("acme/nothing", device="cpu")
    with pytest.raises(CheckpointError, match="'acme/doge' is a 'doge' model, not an ASR-Doge checkpoint"):
        load_model("acme/doge", device="cpu")
    assert find_model("acme/doge").file("no-such-file.json") is None
    with pytest.raises(CheckpointError, match=r"'acme/doge' has no no-such-file\.json"):
        find_model("acme/doge").required_file("no-such-file.json")


@pytest.mark.parametrize(("stored", "given"), [("checkpoint", "Checkpoint"), ("Checkpoint", "checkpoint")])
def test_the_other_case_of_checkpoint_is_tried_and_said(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], stored: str, given: str
) -> None:
    hub.repositories[f"acme/doge-{stored}"] = hub.repositories["acme/doge"]
    loaded = assemble_model("acme/granite", f"acme/doge-{given}", device="cpu")
    said = f"model 'acme/doge-{given}' was not found; 'acme/doge-{stored}' was, and is used"
    assert capsys.readouterr().err.count(said) == 1
    assert loaded.model.config.language_model == f"acme/doge-{stored}"
    loaded.save(tmp_path / "checkpoint")
    load_model(tmp_path / "checkpoint", device="cpu")
    assemble_model("acme/granite", f"acme/doge-{stored}", device="cpu")
    assert "not found" not in capsys.readouterr().err
    hub.unplug()
    assemble_model("acme/granite", f"acme/doge-{given}", device="cpu")
    assert said in capsys.readouterr().err


def test_a_checkpoint_of_neither_case_is_named_by_both(hub: Hub) -> None:
    with pytest.raises(
        CheckpointError, match=r"model 'acme/none-Checkpoint' .* \('acme/none-checkpoint' was tried too\)"
    ):
        assemble_model("acme/granite", "acme/none-Checkpoint", device="cpu")


@pytest.mark.parametrize(
    "verb",
    [
        lambda encoder, language_model: load_model("acme/asr", device="cpu"),
        lambda encoder, language_model: assemble_model(encoder, "acme/asr", device="cpu"),
        lambda encoder, language_model: assemble_model("acme/asr", language_model, device="cpu"),
    ],
    ids=["load", "assemble language model", "assemble encoder"],
)
def test_an_unreachable_hub_is_one_clear_line_at_once(
    hub: Hub,
    granite_folder: Path,
    doge_folder: Path,
    verb: Callable[[Path, Path], LoadedModel],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    hub.unplug()
    with pytest.raises(CheckpointError, match="model 'acme/asr' is neither on this machine nor to be had") as caught:
        verb(granite_folder, doge_folder)
    assert "\n" not in str(caught.value)
    # huggingface_hub would knock six times in 23 seconds and say so each time.
    assert "Retrying" not in caplog.text + "".join(capfd.readouterr())


def test_offline_a_model_downloaded_by_other_tools_still_loads(
    hub: Hub, doge_folder: Path, granite_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`hf download` leaves no note of the files a repository does not have, such as an index of shards."""
    for repository, folder in hub.repositories.items():
        for path in folder.iterdir():
            huggingface_hub.hf_hub_download(repository, path.name)
    hub.unplug()
    assert texts(load_model("acme/asr", device="cpu"))
    assert assemble_model("acme/granite", "acme/doge", device="cpu").model.config.speech_encoder_revision == COMMIT
