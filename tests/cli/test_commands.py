"""Whole commands as a user types them: what they print, where, and with which exit code."""

import json
import platform
import shlex
import shutil
from collections import Counter
from math import prod
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.utils import are_progress_bars_disabled  # type: ignore[attr-defined] # its documented place
from safetensors import safe_open
from transformers.utils import logging

from asr_doge.cli import console, info, train
from asr_doge.data import read_manifest
from asr_doge.models import load_model, loading
from asr_doge.models.checkpoints import BUNDLED_MODELS, find_model, load_model_config
from asr_doge.training.record import write_record
from tests import speech
from tests.cli.conftest import Command
from tests.cli.recordings import FREE

MANIFESTS = ["--train_manifest", __file__, "--dev_manifest", __file__]
"""Files that are there, of commands that do not come to reading them."""

# info


def test_info_counts_the_published_pair_without_it(command: Command) -> None:
    outcome = command("info", "--model", "published")
    assert outcome.code == 0
    text = "\n".join(outcome.out)
    assert "1,574,400" in text
    assert "335,807,744" in text
    assert "torch" in text
    assert outcome.err == []


def test_info_counts_a_checkpoint(command: Command, model: Path) -> None:
    counts = load_model(model, device="cpu").model.count_parameters()
    text = "\n".join(command("info", "--model", model).out)
    assert f"{counts.adapter:,}" in text
    assert f"{counts.total:,}" in text


PARTS = {
    "encoder.family": "LoRA on the speech encoder",
    "encoder.ctc_head": "CTC head",
    "adapter": "adapter",
    "language_model": "LoRA on the language model",
}
"""Of english, what the names of weights in its checkpoint begin with."""


def rows_of(lines: list[str]) -> dict[str, tuple[str, str]]:
    """Where each part comes from and its parameters, by the table that `info` prints."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    return {part: (origin, count) for part, origin, count in rows}


def stored_parameters(path: Path) -> Counter[str]:
    """Numbers in a file of weights by the first parts of their names, without what a batch norm counts in training."""
    counts: Counter[str] = Counter()
    with safe_open(path, framework="pt") as stored:
        for name in stored.keys():  # noqa: SIM118  # it is no dictionary
            if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
                parts = name.split(".")
                counts[".".join(parts[: 2 if parts[0] == "encoder" else 1])] += prod(stored.get_slice(name).get_shape())
    return counts


def test_info_shows_the_default_model_by_part_and_where_downloads_go(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part as transformers or the bundled files have it; the encoder, which is not bundled, is not fetched."""
    monkeypatch.setenv("ASR_DOGE_CACHE", str(tmp_path / "cache"))
    outcome = command("info")
    assert (outcome.code, outcome.err) == (0, [])
    lines = {line[:20].strip(): line[21:] for line in outcome.out}
    assert lines["default model"] == "english"
    assert lines["downloaded models"] == str(tmp_path / "cache" / "models")
    assert lines["hub cache"] == HF_HUB_CACHE
    assert not (tmp_path / "cache").exists()

    english, rows = BUNDLED_MODELS["english"], rows_of(outcome.out)
    with torch.device("meta"):
        whisper = transformers.WhisperModel(load_model_config(find_model("english")).encoder_config)
    expected = {
        "speech encoder": ("openai/whisper-base", whisper.encoder.num_parameters()),
        **{PARTS[name]: ("the checkpoint", n) for name, n in stored_parameters(english / "model.safetensors").items()},
        "language model": (
            "english/language_model",
            stored_parameters(english / "language_model" / "model.safetensors").total(),
        ),
        "case and punctuation": (
            "the checkpoint",
            stored_parameters(english / "punctuation" / "model.safetensors").total(),
        ),
    }
    assert {part: rows[part] for part in expected} == {
        part: (origin, f"{count:,}") for part, (origin, count) in expected.items()
    }
    assert rows["all"][1] == f"{sum(count for _, count in expected.values()):,}"


def test_info_shows_no_part_that_is_not_there(command: Command) -> None:
    nano = BUNDLED_MODELS["nano"]
    encoder = stored_parameters(nano / "encoder" / "model.safetensors").total()
    rows = rows_of(command("info", "--model", "nano").out)
    assert list(rows) == ["speech encoder with its CTC head", "adapter", "language model", "all", "trainable"]
    assert rows["speech encoder with its CTC head"] == ("nano/encoder", f"{encoder:,}")


def test_info_reports_versions_and_devices_but_nothing_personal(command: Command) -> None:
    outcome = command("info", "--report")
    lines = dict(line.split(maxsplit=1) for line in outcome.out)
    assert lines["torch"] == torch.__version__
    assert lines["transformers"] == transformers.__version__
    assert lines["python"] == platform.python_version()
    text = "\n".join(outcome.out)
    assert str(Path.home()) not in text
    assert str(Path.cwd()) not in text
    assert platform.node() not in text


# the commands one after another


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Recordings with texts beside them, in train, dev and test."""
    for split, count in (("train", 8), ("dev", 3), ("test", 3)):
        for utterance in speech.utterances(tmp_path / "made", split, count):
            path = tmp_path / "corpus" / split / utterance.audio_path.name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(utterance.audio_path, path)
            path.with_suffix(".txt").write_text(utterance.raw_text)
    return tmp_path / "corpus"


def test_from_a_corpus_to_transcripts(
    command: Command,
    corpus: Path,
    granite_folder: Path,
    doge_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loading, "MAX_NEW_TOKENS", 12)  # random models never stop by themselves
    processed, checkpoints = tmp_path / "processed", tmp_path / "checkpoints"
    outcome = command(
        *("process", "--dataset", "folder", "--data_dir", corpus, "--output_dir", processed, "--min_duration", "0.3")
    )
    assert outcome.code == 0, outcome.err
    assert outcome.out[0].startswith("train (train): 8 utterances")

    encode = ("features", "--data_dir", processed, "--speech_encoder", granite_folder, "--device", "cpu")
    assert command(*encode).out == [f"14 utterances encoded, 0 kept, 0 unreadable: {processed / 'features'}"]
    assert command(*encode).out == [f"0 utterances encoded, 14 kept, 0 unreadable: {processed / 'features'}"]

    recipe = speech.write_yaml(
        tmp_path / "recipe.yaml",
        [
            *("train:", "  adapter_hidden_dim: 16", "  batch_size: 4", "  warmup_steps: 1", "  epochs: 9"),
            *("  eval_steps: 2", "  save_steps: 2", "benchmark:", "  num_speed_runs: 1"),
        ],
    )
    outcome = command(
        *("train", "--config", recipe, "--data_dir", processed, "--features_dir", processed / "features"),
        *("--speech_encoder", granite_folder, "--language_model", doge_folder, "--output_dir", checkpoints),
        *("--epochs", "2", "--device", "cpu", "--no_wandb"),
    )
    assert outcome.code == 0, outcome.err
    assert outcome.out[-1].startswith("4 steps, best dev CER ")
    assert outcome.out[-1].endswith(str(checkpoints / "best"))
    others = ("missing keys", "Warning", "Loading weights", "Writing model shards")
    assert not [line for line in outcome.err if any(words in line for words in others)]

    outcome = command(
        *("benchmark", "--config", recipe, "--checkpoint_dir", checkpoints / "best", "--data_dir", processed),
        *("--output_dir", tmp_path / "report", "--device", "cpu"),
    )
    assert outcome.code == 0, outcome.err
    (report,) = (tmp_path / "report").glob("*.json")
    assert outcome.out[-1] == f"report: {report}"
    results = json.loads(report.read_text())
    assert results["accuracy"]["num_samples"] == 3

    outcome = command("transcribe", *FREE, corpus / "test", "--model", checkpoints / "best", "--format", "json")
    assert outcome.code == 0
    texts = {Path(entry["path"]).name: entry["text"] for entry in json.loads("\n".join(outcome.out))["results"]}
    assert texts.keys() == {utterance.audio_path.name for utterance in read_manifest(processed / "test_manifest.json")}

    outcome = command("info", "--model", checkpoints / "best")
    assert outcome.code == 0
    assert f"{results['parameters']['adapter']:,}" in "\n".join(outcome.out)


def test_what_features_could_not_read_is_named(
    command: Command, corpus: Path, granite_folder: Path, tmp_path: Path
) -> None:
    processed = tmp_path / "processed"
    command("process", "--dataset", "folder", "--data_dir", corpus, "--output_dir", processed, "--min_duration", "0.3")
    broken = corpus / "train" / "train-2.wav"
    broken.write_bytes(b"no sound")
    outcome = command("features", "--data_dir", processed, "--speech_encoder", granite_folder)
    assert outcome.out == [f"13 utterances encoded, 0 kept, 1 unreadable: {processed / 'features'}"]
    assert any(line.startswith(f"left out: {broken}") for line in outcome.err)


@pytest.mark.parametrize(
    ("subcommand", "arguments", "named"),
    [
        ("process", ["--data_dir", "nowhere", "--output_dir", "out"], "nowhere"),
        ("process", ["--data_dir", ".", "--output_dir", "out", "--dataset", "timit"], "--dataset timit"),
        ("features", ["--data_dir", "nowhere"], "nowhere"),
        ("train", ["--data_dir", "nowhere"], "nowhere/train_manifest.json"),
        ("train", [*MANIFESTS, "--eval_steps", "0"], "--eval_steps"),
        ("train", [*MANIFESTS, "--resume_from", "latest", "--output_dir", "nothing"], "--resume_from latest"),
        ("benchmark", ["--data_dir", "nowhere"], "nowhere/test_manifest.json"),
        ("pretrain", ["--digits_dir", "nowhere", "--output_dir", "out"], "nowhere"),
        ("info", ["--model", "./none"], "./none"),
        ("merge", ["--checkpoint_dir", "./none", "--output_dir", "out"], "./none"),
        ("export", ["--checkpoint_dir", "./none", "--output_dir", "out"], "./none"),
        ("export", ["--output_dir", "/dev/null/onnx"], "/dev/null is a file"),
    ],
)
def test_what_is_missing_is_one_line(
    command: Command, subcommand: str, arguments: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = command(subcommand, *arguments)
    assert (outcome.code, outcome.out) == (2, [])
    (line,) = outcome.err
    assert line.startswith("error: ")
    assert named in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("subcommand", ["features", "transcribe", "benchmark"])
def test_each_command_refuses_to_compile_what_has_no_such_blocks(
    command: Command, subcommand: str, head_folder: Path, tmp_path: Path
) -> None:
    processed = speech.write_corpus(tmp_path / "processed", train=1, dev=1, test=1)
    arguments = {
        "features": ("--data_dir", processed, "--speech_encoder", head_folder),
        "transcribe": (processed, "--model", head_folder),
        "benchmark": ("--data_dir", processed, "--checkpoint_dir", head_folder, "--output_dir", tmp_path / "report"),
    }[subcommand]
    outcome = command(subcommand, *arguments, "--device", "cpu", "--compile")
    assert outcome.code == 2
    assert outcome.err[-1] == (
        "error: --compile is for encoders of type granite_speech and granite_speech_plus, and this one is of type"
        " whisper: leave it out"
    )


@pytest.mark.parametrize("began", [False, True])
def test_an_interrupted_training_says_how_to_go_on_if_it_can(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, began: bool
) -> None:
    output_dir = tmp_path / "my checkpoints"

    def interrupted(config: object) -> None:
        output_dir.mkdir()
        if began:
            write_record(output_dir, {})
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train", interrupted)
    outcome = command("train", *MANIFESTS, "--output_dir", str(output_dir), "--epochs", "3")
    assert (outcome.code, outcome.out) == (130, [])
    assert outcome.err[-1] == "interrupted"
    advice = [line.partition("stopped; go on with: ")[2] for line in outcome.err if "stopped" in line]
    settings = str(output_dir / "train_config.yaml")
    expected = ["asr-doge", "train", "--config", settings, "--resume_from", "latest"]
    assert [shlex.split(line) for line in advice] == ([expected] if began else [])


def test_a_file_that_the_system_refuses_is_one_line(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    outcome = command("demo", "--output_dir", tmp_path / "file" / "demo")
    assert (outcome.code, outcome.out) == (2, [])
    (line,) = outcome.err
    assert line == f"error: {tmp_path / 'file' / 'demo'}: Not a directory"


def test_other_errors_of_the_system_keep_their_traceback(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(arguments: object) -> int:
        raise OSError("a defect")

    monkeypatch.setattr(info, "run", broken)
    with pytest.raises(OSError, match="a defect"):
        command("info")


def test_of_libraries_only_downloads_show_their_progress() -> None:
    console.quiet_libraries()
    assert not logging.is_progress_bar_enabled()  # loading and writing weights
    assert not are_progress_bars_disabled()
    assert not are_progress_bars_disabled("huggingface_hub.http_get")
