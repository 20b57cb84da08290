"""`asr-doge benchmark` as a user types it: its tables, comparing, merging, and what goes wrong."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asr_doge.benchmark import BenchmarkConfig
from asr_doge.cli.benchmark import _parts_folder
from asr_doge.cli.commands import parse_command
from asr_doge.data import read_manifest, write_manifest
from tests import speech
from tests.cli.conftest import Command, Outcome

QUICK = ("--num_speed_runs", "1", "--num_warmup_runs", "0", "--batch_sizes", "2", "--device", "cpu")


@pytest.fixture
def processed(tmp_path: Path) -> Path:
    return speech.write_corpus(tmp_path / "processed", train=1, dev=1, test=4)


def only_json(folder: Path) -> Path:
    (report,) = folder.glob("*.json")
    return report


def rows(outcome: Outcome) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in outcome.out if line.startswith("│")]


def parsed(*arguments: str) -> BenchmarkConfig:
    config = parse_command("benchmark", arguments)
    assert isinstance(config, BenchmarkConfig)
    return config


def test_lists_are_written_side_by_side(tmp_path: Path) -> None:
    config = parsed("--batch_sizes", "1", "16", "--peer", "a", "hf:b", "--device", "cpu", "--compare", "x.json", "-")
    assert (config.batch_sizes, config.peer, config.device) == ([1, 16], ["a", "hf:b"], "cpu")
    assert config.compare == ["x.json", "-"]
    recipe = speech.write_yaml(tmp_path / "r.yaml", ["batch_sizes: [4, 5]", "peer: [c]"])
    config = parsed("--batch_sizes", "2", "--config", str(recipe))
    assert (config.batch_sizes, config.peer) == ([2], ["c"])
    assert parsed("--batch_sizes").batch_sizes == []
    assert parsed("--peer", "7", "[x]").peer == ["7", "[x]"]


def test_a_language_is_for_utterances_without_one(
    command: Command, model: Path, processed: Path, tmp_path: Path
) -> None:
    manifest = processed / "test_manifest.json"
    first, *others = read_manifest(manifest)
    write_manifest(manifest, [replace(first, language="fr"), *others])
    outcome = command(
        *("benchmark", "--checkpoint_dir", model, "--data_dir", processed, "--output_dir", tmp_path / "report"),
        *("--language", "de", *QUICK),
    )
    assert outcome.code == 0, outcome.err
    by_language = json.loads(only_json(tmp_path / "report").read_text())["accuracy_by_language"]
    assert {name: accuracy["num_samples"] for name, accuracy in by_language.items()} == {"de": 3, "fr": 1}
    assert any("--language de has no effect on the text" in line for line in outcome.err)


def test_two_runs_compared(command: Command, model: Path, processed: Path, tmp_path: Path) -> None:
    def measure(name: str) -> Path:
        outcome = command(
            *("benchmark", "--checkpoint_dir", model, "--data_dir", processed, "--output_dir", tmp_path / name), *QUICK
        )
        assert outcome.code == 0, outcome.err
        labels = {row[0] for row in rows(outcome)}
        assert {"sub, del, ins", "p50, p90, p99", "log-mel", "encoder", "prefill", "2 at once"} <= labels
        report = only_json(tmp_path / name)
        assert outcome.out[-1] == f"report: {report}"
        assert outcome.out[-2] == f"page:   {report.with_suffix('.html')}"
        return report

    first = measure("first")
    heard = {sample["id"]: sample["raw_hypothesis"] for sample in json.loads(first.read_text())["samples"]}
    samples = read_manifest(processed / "test_manifest.json")
    document = json.loads(first.read_text())
    for sample in document["samples"][:3]:
        sample["raw_hypothesis"] = sample["raw_reference"]  # as if a better model had been measured
        sample["words"] = sample["words"] | {"substitutions": 0, "deletions": 0, "insertions": 0}
    second = tmp_path / "second.json"
    second.write_text(json.dumps(document))
    assert len(heard) == len(samples) == 4

    outcome = command("benchmark", "--compare", first, second)
    assert outcome.code == 0, outcome.err
    (clean,) = (row for row in rows(outcome) if row[0] == "clean")
    assert clean[-1] == "3 / 0"
    assert float(clean[2]) < 0
    write_manifest(processed / "test_manifest.json", samples[:2])
    part = measure("part")
    outcome = command("benchmark", "--compare", part, second)
    assert outcome.out[-1].strip() == "2 utterances are in one report only, and left out"


def test_shards_are_merged(command: Command, model: Path, processed: Path, tmp_path: Path) -> None:
    for index in (1, 2):
        outcome = command(
            *("benchmark", "--checkpoint_dir", model, "--data_dir", processed, "--shard", f"{index}/2"),
            *("--output_dir", tmp_path / str(index), *QUICK),
        )
        assert outcome.code == 0, outcome.err
    parts = [only_json(tmp_path / str(index)) for index in (1, 2)]
    outcome = command("benchmark", "--merge", *parts, "--output_dir", tmp_path / "whole")
    assert outcome.code == 0, outcome.err
    whole = json.loads(only_json(tmp_path / "whole").read_text())
    assert [sample["id"] for sample in whole["samples"]] == ["test-0", "test-1", "test-2", "test-3"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--compare", "one.json"], "--compare takes two reports"),
        (["--compare", "none.json", "none.json"], "none.json"),
        (["--compare", "empty.json", "empty.json"], "empty.json is not JSON"),
        (["--compare", "old.json", "old.json"], "old.json is a report of version 1"),
        (["--compare", "odd.json", "odd.json"], "odd.json is no report"),
        (["--compare", "part.json", "part.json"], "part.json is not a whole report"),
        (["--compare", "a.json", "b.json", "--merge", "c.json"], "--compare and --merge do not go together"),
        (["--checkpoint_dir", "./none", "--test_manifest", "test.jsonl"], "./none"),
        (["--test_manifest", "empty.jsonl"], "empty.jsonl holds no utterances"),
        (["--test_manifest", "test.jsonl", "--device", "cuda:99"], "'cuda:99' is not available"),
        (["--test_manifest", "test.jsonl"], "none of the 1 samples can be read"),
        (["--test_manifest", "test.jsonl", "--batch_sizes", "x"], "batch_sizes"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    command: Command, arguments: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    contents: dict[str, Any] = {"old": {"version": 1}, "odd": [], "part": {"version": 2}}
    for name, content in contents.items():
        Path(f"{name}.json").write_text(json.dumps(content))
    Path("empty.json").touch()
    Path("empty.jsonl").touch()
    Path("test.jsonl").write_text('{"audio_path": "gone.wav", "text": "one", "duration": 1.0}\n')
    before = sorted(tmp_path.iterdir())
    outcome = command("benchmark", *arguments)
    assert (outcome.code, outcome.out) == (2, [])
    line = outcome.err[-1]  # after a progress bar, where there was one
    assert line.startswith("error: ")
    assert named in line
    assert sorted(tmp_path.iterdir()) == before


def test_the_published_recipe_measures_what_it_trained() -> None:
    recipe = ["--config", str(Path(__file__).parents[2] / "configs" / "default.yaml")]
    trained = parse_command("train", recipe).output_dir
    assert Path(parse_command("benchmark", recipe).checkpoint_dir) == Path(trained) / "best"


def test_parts_of_another_checkpoint_or_test_set_have_another_folder(tmp_path: Path) -> None:
    model, manifest = tmp_path / "model", tmp_path / "test_manifest.json"
    model.mkdir()
    config = BenchmarkConfig(checkpoint_dir=str(model), data_dir=str(tmp_path), output_dir=str(tmp_path / "out"))
    folders = []
    for weights, lines in ((b"1", "{}"), (b"1", "{}"), (b"2", "{}"), (b"2", '{"id": "a"}')):
        (model / "adapter.safetensors").write_bytes(weights)
        manifest.write_text(lines)
        folders.append(_parts_folder(config))
    assert [folders.index(folder) for folder in folders] == [0, 0, 2, 3]
    assert {folder.parent for folder in folders} == {tmp_path / "out"}
