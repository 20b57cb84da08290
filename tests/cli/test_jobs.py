"""`asr-doge transcribe --engine …` as a user types it."""

import json
from pathlib import Path
from typing import BinaryIO

import pytest

from asr_doge.scaling import engines, item_reading
from asr_doge.scaling.items import FetchError, Item
from tests.cli.conftest import Command
from tests.cli.recordings import FREE


def test_lines_are_those_of_transcribing_the_files(
    command: Command, model: Path, recordings: Path, tmp_path: Path
) -> None:
    (recordings / "bad.wav").write_text("no sound")
    printed = command("transcribe", *FREE, recordings, "--model", model, "--format", "jsonl").out
    out = tmp_path / "out"
    outcome = command("transcribe", *FREE, recordings, "--model", model, "--engine", "local", "--output_dir", out)
    assert outcome.code == 2
    (shard,) = out.glob("*.jsonl")
    assert shard.read_text().splitlines() == printed
    summary = json.loads(outcome.out[-1])
    assert (summary["transcribed"], summary["failed"], summary["finished"]) == (3, 1, 1)
    (error,) = [line for line in outcome.err if line.startswith("error: ")]
    assert "bad.wav is not audio" in error
    again = command("transcribe", *FREE, recordings, "--model", model, "--engine", "local", "--output_dir", out)
    assert again.err[0] == "1 of 1 shards are complete already"
    assert json.loads(again.out[-1])["failed"] == 1


def test_a_plan_says_what_the_job_holds_and_writes_nothing(
    command: Command, model: Path, recordings: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    manifest = tmp_path / "m.json"
    rows = [{"audio_path": str(recordings / "b.wav"), "offset": 0.1 * n, "duration": 0.4} for n in range(5)]
    manifest.write_text("\n".join(map(json.dumps, rows)))
    flags = ("--plan", "--shard_size", "2", "--workers", "4", "--num_gpus_per_worker", "0.5", "--price_per_hour", "2")
    outcome = command("transcribe", *FREE, manifest, "--model", model, "--output_dir", out, *flags)
    assert outcome.code == 0
    lines = dict(line.split(maxsplit=1) for line in outcome.out)
    assert lines["audio"] == "0.00 h in 5 recordings"
    assert lines["output"].startswith("3 shards")
    assert lines["time"].endswith("with 3 workers and 1.5 GPUs")  # no more workers than shards
    assert lines["price"].endswith("at 2 an hour")
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--engine", "local"], "--engine writes shards: name a folder or URL for them with --output_dir"),
        (["--engine", "local", "--output_dir", "o", "--format", "srt"], "--engine writes jsonl or parquet, not srt"),
        (["--format", "parquet"], "--format parquet is a format of shards: add --engine local or --engine ray"),
        (["--engine", "ray", "--output_dir", "o", "--shard", "1/2"], "--shard divides a job without a cluster"),
        (["--engine", "ray", "--output_dir", "o", "--workers", "3:1"], "--workers 3:1 cannot be used"),
        (["--shard", "3/2", "--output_dir", "o"], "--shard 3/2 cannot be used"),
        (["--engine", "local", "--output_dir", "o", "--max_attempts", "0"], "--max_attempts 0 cannot be used"),
        (["--shard", "1/2", "--output_dir", "o", "--overwrite"], "--overwrite would remove what other parts"),
        (["--engine", "local", "--output_dir", "nope://bucket/o"], "nope://bucket/o cannot be opened"),
        (
            ["--engine", "ray", "--output_dir", "o", "--ray_address", "127.0.0.1:1"],
            "--ray_address 127.0.0.1:1: no clus",
        ),
    ],
)
def test_what_cannot_be_done_is_one_line(
    command: Command, recordings: Path, tmp_path: Path, flags: list[str], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "ray" in flags:
        pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    outcome = command("transcribe", recordings, *flags)
    assert (outcome.code, len(outcome.err)) == (2, 1)
    assert outcome.err[0].startswith(f"error: {line}")


def test_a_source_that_is_not_there_is_one_line(command: Command, tmp_path: Path) -> None:
    outcome = command("transcribe", tmp_path, "--engine", "local", "--output_dir", tmp_path / "out")
    assert outcome.code == 2
    assert "holds no recordings" in outcome.err[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("subcommand", ["features", "benchmark"])
def test_parts_are_not_named_to_a_cluster(command: Command, tmp_path: Path, subcommand: str) -> None:
    (tmp_path / "test_manifest.json").touch()
    outcome = command(subcommand, "--data_dir", tmp_path, "--engine", "ray", "--shard", "1/2")
    assert outcome.code == 2
    assert outcome.err == ["error: --shard divides the work without a cluster: leave it or --engine ray out"]


def test_recordings_that_cannot_be_fetched_are_said_to_be_tried_again(
    command: Command, model: Path, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(item: Item) -> BinaryIO:
        if item.url.endswith("b.wav"):
            raise FetchError(f"{item.name} cannot be fetched: no answer.")
        return honest(item)

    honest = item_reading.open_item
    monkeypatch.setattr(item_reading, "open_item", away)
    for module in (engines, item_reading):
        monkeypatch.setattr(module, "_PAUSE_SECONDS", 0.0)
    flags = ("--engine", "local", "--output_dir", tmp_path / "out", "--shard_size", "1")
    outcome = command("transcribe", *FREE, recordings, "--model", model, *flags)
    assert outcome.code == 2
    summary = json.loads(outcome.out[-1])
    assert (summary["left"], summary["failed"], summary["finished"]) == (1, 0, summary["shards"] - 1)
    (line,) = [line for line in outcome.err if line.startswith("error: ")]
    assert line.startswith("error: not done, and to be tried again by the same command: ")
    assert "b.wav cannot be fetched: no answer." in line
