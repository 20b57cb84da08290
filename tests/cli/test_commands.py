"""Whole commands as a user types them: what they print, where, and with which exit code."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr_doge.data import read_manifest
from asr_doge.inference import Transcriber, Transcription
from asr_doge.models import assemble_model, load_model, loading
from tests import speech
from tests.cli.conftest import Command
from tests.models import tiny


def clip(path: Path, seconds: float = 0.8, seed: int = 0) -> Path:
    return speech.write_wav(path, tiny.random_waveform(seconds, seed))


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """A folder with three recordings in it and below."""
    clip(tmp_path / "talks" / "b.wav", 0.8, seed=1)
    clip(tmp_path / "talks" / "a b.flac", 1.4, seed=2)
    clip(tmp_path / "talks" / "deep" / "c.ogg", 0.5, seed=3)
    (tmp_path / "talks" / "notes.txt").write_text("not a recording")
    return tmp_path / "talks"


def one_line(transcription: Transcription | list[Transcription]) -> str:
    assert isinstance(transcription, Transcription)
    return " ".join(transcription.text.split())


def heard(model: Path, path: Path) -> str:
    return one_line(Transcriber(load_model(model, device="cpu")).transcribe(path))


# transcribe


def test_one_recording_is_its_text_alone(command: Command, model: Path, recordings: Path) -> None:
    outcome = command("transcribe", recordings / "b.wav", "--model", model)
    assert outcome.code == 0
    assert "\n".join(outcome.out) == "\n".join(heard(model, recordings / "b.wav").splitlines())
    assert outcome.err == []


def test_files_and_folders_with_their_names_in_order(command: Command, model: Path, recordings: Path) -> None:
    extra = clip(recordings.parent / "z.wav", seed=9)
    outcome = command("transcribe", extra, recordings, "--model", model, "--batch_size", "2")
    assert outcome.code == 0
    names = [line.partition("\t")[0] for line in outcome.out if "\t" in line]
    assert names == [str(extra), *(str(recordings / name) for name in ("a b.flac", "b.wav", "deep/c.ogg"))]
    assert outcome.err == []


def test_json_is_one_document(command: Command, model: Path, recordings: Path) -> None:
    missing = recordings / "missing.wav"
    outcome = command("transcribe", recordings / "b.wav", missing, recordings, "--format", "json", "--model", model)
    assert outcome.code == 2
    document = json.loads("\n".join(outcome.out))
    assert document["model"] == str(model)
    results = document["results"]
    paths = [recordings / name for name in ("b.wav", "missing.wav", "a b.flac", "b.wav", "deep/c.ogg")]
    assert [entry["path"] for entry in results] == [str(path) for path in paths]
    assert [list(entry) for entry in results].count(["path", "duration", "text"]) == 4
    assert "does not exist" in results[1]["error"]
    assert results[0] == results[3]
    assert results[0]["duration"] == 0.8
    assert results[0]["text"]


def faulty(folder: Path) -> dict[str, Path]:
    """Recordings that cannot be transcribed, by what is to be said of them."""
    folder.mkdir()
    (folder / "empty.wav").touch()
    (folder / "letter.wav").write_text("Dear Sir or Madam,\n" * 50)
    whole = clip(folder / "whole.flac", 3.0).read_bytes()
    (folder / "whole.flac").unlink()
    (folder / "cut.flac").write_bytes(whole[: len(whole) // 2])
    soundfile.write(folder / "nan.wav", np.full(8000, np.nan, dtype=np.float32), 16_000, subtype="FLOAT")
    soundfile.write(folder / "nothing.wav", np.zeros(0, dtype=np.float32), 16_000)
    clip(folder / "blip.wav", 0.01)
    (folder / "bare").mkdir()
    return {
        "does not exist": folder / "missing.wav",
        "0 bytes": folder / "empty.wav",
        "not audio": folder / "letter.wav",
        "truncated or corrupt": folder / "cut.flac",
        "NaN": folder / "nan.wav",
        "holds no samples": folder / "nothing.wav",
        "10 ms long": folder / "blip.wav",
        "holds no recordings": folder / "bare",
    }


def test_each_fault_is_one_line_and_the_rest_is_transcribed(
    command: Command, model: Path, recordings: Path, tmp_path: Path
) -> None:
    faults = faulty(tmp_path / "faulty")
    outcome = command("transcribe", recordings / "b.wav", *faults.values(), recordings / "a b.flac", "--model", model)
    assert outcome.code == 2
    assert [line.partition("\t")[0] for line in outcome.out if "\t" in line] == [
        str(recordings / "b.wav"),
        str(recordings / "a b.flac"),
    ]
    *errors, summary = outcome.err
    assert summary == "2 transcribed, 8 failed"
    assert len(errors) == 8
    for finding, path in faults.items():
        assert [line for line in errors if line.startswith("error: ") and str(path) in line and finding in line]


@pytest.mark.parametrize("number", range(8))
def test_a_fault_alone(command: Command, model: Path, tmp_path: Path, number: int) -> None:
    finding, path = list(faulty(tmp_path / "faulty").items())[number]
    outcome = command("transcribe", path, "--model", model)
    assert (outcome.code, outcome.out) == (2, [])
    assert len(outcome.err) == 2
    assert str(path) in outcome.err[0]
    assert finding in outcome.err[0]
    assert outcome.err[1] == "0 transcribed, 1 failed"


def test_silence_is_an_empty_line(command: Command, model: Path, tmp_path: Path) -> None:
    path = speech.write_wav(tmp_path / "silence.wav", np.zeros(16_000, dtype=np.float32))
    outcome = command("transcribe", path, "--model", model)
    assert (outcome.code, outcome.out, outcome.err) == (0, [""], [])


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep such names off their disks")
def test_a_name_in_another_encoding_stops_nothing(command: Command, model: Path, tmp_path: Path) -> None:
    good = clip(tmp_path / "good.wav")
    shutil.copy(good, tmp_path / os.fsdecode(b"caf\xe9.wav"))
    outcome = command("transcribe", tmp_path, "--model", model)
    assert outcome.code == 2
    assert any(line.startswith(f"{good}\t") for line in outcome.out)
    assert "caf\\udce9.wav has a name that is not UTF-8" in outcome.err[0]


@pytest.mark.parametrize("name", ["nanno", "./nowhere", "/no/such/folder"])
def test_an_unknown_model_is_one_line(command: Command, recordings: Path, name: str) -> None:
    outcome = command("transcribe", recordings, "--model", name)
    assert (outcome.code, outcome.out) == (2, [])
    (line,) = outcome.err
    assert line.startswith(f"error: unknown model '{name}'")


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "processor_config.json", "generation_config.json"]
)
def test_a_checkpoint_with_a_missing_file_is_one_line(
    command: Command, model: Path, recordings: Path, tmp_path: Path, name: str
) -> None:
    broken = shutil.copytree(model, tmp_path / "broken")
    (broken / name).unlink()
    outcome = command("transcribe", recordings, "--model", broken)
    assert (outcome.code, outcome.out) == (2, [])
    (line,) = outcome.err
    assert str(broken) in line


def test_an_unknown_device_is_one_line(command: Command, model: Path, recordings: Path) -> None:
    outcome = command("transcribe", recordings, "--model", model, "--device", "abacus")
    assert (outcome.code, len(outcome.err)) == (2, 1)
    assert "'abacus' is not a device" in outcome.err[0]


# info


def test_info_counts_the_published_pair_without_it(command: Command) -> None:
    outcome = command("info", "--model", "published")
    assert outcome.code == 0
    text = "\n".join(outcome.out)
    assert "1,574,400" in text
    assert "335,750,272" in text
    assert "torch" in text
    assert outcome.err == []


def test_info_counts_a_checkpoint(command: Command, model: Path) -> None:
    counts = load_model(model, device="cpu").model.count_parameters()
    text = "\n".join(command("info", "--model", model).out)
    assert f"{counts.adapter:,}" in text
    assert f"{counts.total:,}" in text


# the verbs one after another


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
    assert not [line for line in outcome.err if "missing keys" in line or "Warning" in line]

    outcome = command(
        *("benchmark", "--config", recipe, "--checkpoint_dir", checkpoints / "best", "--data_dir", processed),
        *("--output_dir", tmp_path / "report", "--device", "cpu"),
    )
    assert outcome.code == 0, outcome.err
    (report,) = (tmp_path / "report").glob("*.json")
    assert outcome.out[-1] == f"report: {report}"
    results = json.loads(report.read_text())
    assert results["accuracy"]["num_samples"] == 3

    outcome = command("transcribe", corpus / "test", "--model", checkpoints / "best", "--format", "json")
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
    ("verb", "arguments", "named"),
    [
        ("process", ["--data_dir", "nowhere", "--output_dir", "out"], "nowhere"),
        ("process", ["--data_dir", ".", "--output_dir", "out", "--dataset", "timit"], "--dataset timit"),
        ("features", ["--data_dir", "nowhere"], "nowhere"),
        ("train", ["--data_dir", "nowhere"], "nowhere/train_manifest.json"),
        ("train", ["--data_dir", "nowhere", "--eval_steps", "0"], "--eval_steps"),
        ("train", ["--resume_from", "latest", "--output_dir", "nothing"], "--resume_from latest"),
        ("benchmark", ["--data_dir", "nowhere"], "nowhere/test_manifest.json"),
        ("pretrain", ["--digits_dir", "nowhere", "--output_dir", "out"], "nowhere"),
        ("info", ["--model", "./none"], "./none"),
    ],
)
def test_what_is_missing_is_one_line(
    command: Command, verb: str, arguments: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = command(verb, *arguments)
    assert (outcome.code, outcome.out) == (2, [])
    (line,) = outcome.err
    assert line.startswith("error: ")
    assert named in line
    assert list(tmp_path.iterdir()) == []


# as a process of its own


def run_process(*arguments: str | Path, encoding: str = "utf-8") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "asr_doge.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONIOENCODING": encoding},
        timeout=300,
        check=False,
    )


def test_a_real_run_prints_the_texts_and_nothing_else(model: Path, recordings: Path) -> None:
    """No warnings of libraries, no progress bars of others; and a terminal of few letters stops nothing."""
    finished = run_process("transcribe", recordings, "--model", model, "--device", "cpu", encoding="ascii")
    assert finished.returncode == 0
    assert finished.stderr == ""
    assert [line.partition("\t")[0] for line in finished.stdout.splitlines()] == [
        str(recordings / name) for name in ("a b.flac", "b.wav", "deep/c.ogg")
    ]


def test_a_mistake_in_a_real_run_is_one_line(tmp_path: Path) -> None:
    finished = run_process("train", "--data_dir", tmp_path / "nowhere")
    assert (finished.returncode, finished.stdout) == (2, "")
    assert len(finished.stderr.splitlines()) == 1
    assert "nowhere/train_manifest.json" in finished.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
def test_a_reader_that_stops_early_is_no_error(model: Path, recordings: Path) -> None:
    command = [sys.executable, "-m", "asr_doge.cli", "transcribe", str(recordings), "--model", str(model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_the_assembled_parts_write_the_same_through_the_command(
    command: Command, granite_folder: Path, doge_folder: Path, tmp_path: Path
) -> None:
    """A checkpoint that nobody trained is a checkpoint too."""
    loaded = assemble_model(granite_folder, doge_folder, device="cpu")
    loaded.model.generation_config.max_new_tokens = 6
    loaded.save(tmp_path / "untrained")
    path = clip(tmp_path / "a.wav")
    text = one_line(Transcriber(loaded).transcribe(path))
    assert "\n".join(command("transcribe", path, "--model", tmp_path / "untrained").out) == "\n".join(text.splitlines())
