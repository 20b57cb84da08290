"""The demo goes the whole way, shows what it does, and touches nothing that it has not made."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from asr_doge.cli import demo
from asr_doge.models import LoadedModel, assemble_model, load_model
from asr_doge.models.fetching import local_folder
from asr_doge.training import training
from tests.cli.conftest import Command, Outcome


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def commands_shown(outcome: Outcome) -> list[list[str]]:
    return [shlex.split(line)[2:] for line in outcome.out if line.startswith("$ asr-doge ")]


def rates(folder: Path, name: str) -> dict[str, Any]:
    (report,) = (folder / "benchmark" / name).glob("*.json")
    accuracy: dict[str, Any] = json.loads(report.read_text())["accuracy"]
    return accuracy


@pytest.mark.parametrize("is_here", [True, False])
def test_a_folder_that_no_demo_made_is_left_alone(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_here: bool
) -> None:
    precious = tmp_path / "work" / "checkpoints" / "best" / "model.safetensors"
    precious.parent.mkdir(parents=True)
    precious.write_bytes(b"weeks of training")
    monkeypatch.chdir(tmp_path / "work")
    outcome = command("demo", "--output_dir", "." if is_here else tmp_path / "work")
    assert (outcome.code, outcome.out) == (2, [])
    (line,) = outcome.err
    assert line.startswith("error: --output_dir ")
    assert "choose another" in line
    assert files_in(tmp_path / "work") == {"checkpoints/best/model.safetensors": b"weeks of training"}


def test_a_file_is_no_folder(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    outcome = command("demo", "--output_dir", tmp_path / "file")
    assert (outcome.code, len(outcome.err)) == (2, 1)
    assert "is a file" in outcome.err[0]


def test_the_whole_way_and_what_nano_learns_on_it(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[dict[str, torch.Tensor]] = []

    def assemble(*arguments: Any, **options: Any) -> LoadedModel:
        loaded = assemble_model(*arguments, **options)
        starts.append({name: weight.cpu().clone() for name, weight in loaded.model.adapter.state_dict().items()})
        return loaded

    monkeypatch.setattr(training, "assemble_model", assemble)
    folder = tmp_path / "demo"
    (folder / "corpus" / "audio").mkdir(parents=True)
    (folder / "corpus" / "audio" / "old.wav").touch()
    (folder / demo.MARKER).touch()  # an earlier demo's
    (folder / "notes.txt").write_text("mine")
    outcome = command("demo", "--output_dir", folder, "--train_utterances", "100", "--seed", "4")
    assert outcome.code == 0, outcome.err
    assert not (folder / "corpus" / "audio" / "old.wav").exists()
    assert (folder / "notes.txt").read_text() == "mine"

    before = load_model(folder / "checkpoints" / "untrained", device="cpu").model.adapter.state_dict()
    (start,) = starts
    assert before.keys() == start.keys()
    assert all(torch.equal(before[name], start[name]) for name in start)

    shown = commands_shown(outcome)
    assert [arguments[0] for arguments in shown] == [
        *("process", "features", "train", "benchmark", "benchmark", "transcribe"),
        *(["transcribe"] if local_folder(demo.ENGLISH_ENCODER) else []),
    ]
    assert [arguments[2] for arguments in shown[3:5]] == [
        str(folder / "checkpoints" / name) for name in ("untrained", "best")
    ]
    for name in ("untrained", "best"):
        accuracy = rates(folder, name)
        assert accuracy["num_samples"] == 8
        for rate in ("wer", "cer"):
            row = next(line for line in outcome.out if line.startswith(f"│ {rate.upper()} %"))
            assert f" {100 * accuracy[rate]:.2f} ± {100 * accuracy[f'{rate}_std']:.1f} " in row
    assert rates(folder, "best")["cer"] < rates(folder, "untrained")["cer"]
    said = [line for line in outcome.out if line.startswith("  said: ")]
    assert len(said) == 5
    assert re.fullmatch(r"\d+ seconds in all", outcome.out[-1])
