"""Whole commands as a user types them: what they print, where, and with which exit code."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from huggingface_hub.utils import are_progress_bars_disabled  # type: ignore[attr-defined] # its documented place
from transformers.utils import logging

from asr_doge.cli import console, info, train
from asr_doge.data import read_manifest
from asr_doge.decoding import DecodingConfig
from asr_doge.inference.results import Transcription
from asr_doge.inference.transcription import Transcriber
from asr_doge.models import assemble_model, load_model, loading
from asr_doge.training.record import write_record
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


FREE = ("--guard_silence", "false")
"""A random model is never sure that somebody speaks."""


def one_line(transcription: Transcription | list[Transcription]) -> str:
    assert isinstance(transcription, Transcription)
    return " ".join(transcription.text.split())


def heard(model: Path, path: Path) -> str:
    transcriber = Transcriber(load_model(model, device="cpu"), decoding=DecodingConfig(guard_silence=False))
    return one_line(transcriber.transcribe(path))


# transcribe


def test_one_recording_is_its_text_alone(command: Command, model: Path, recordings: Path) -> None:
    outcome = command("transcribe", *FREE, recordings / "b.wav", "--model", model)
    assert outcome.code == 0
    assert "\n".join(outcome.out) == "\n".join(heard(model, recordings / "b.wav").splitlines())
    assert outcome.err == []


def test_a_language_that_the_model_is_not_told_is_said_to_be_in_vain(
    command: Command, model: Path, recordings: Path
) -> None:
    outcome = command("transcribe", *FREE, recordings / "b.wav", "--model", model, "--language", "de")
    assert outcome.code == 0
    assert "\n".join(outcome.out) == "\n".join(heard(model, recordings / "b.wav").splitlines())
    (line,) = outcome.err
    assert line == f"--language de has no effect on the text: {model} reads no prompt that names the language"


def test_files_and_folders_with_their_names_in_order(command: Command, model: Path, recordings: Path) -> None:
    extra = clip(recordings.parent / "z.wav", seed=9)
    outcome = command("transcribe", *FREE, extra, recordings, "--model", model, "--batch_size", "2")
    assert outcome.code == 0
    names = [line.partition("\t")[0] for line in outcome.out if "\t" in line]
    assert names == [str(extra), *(str(recordings / name) for name in ("a b.flac", "b.wav", "deep/c.ogg"))]
    assert outcome.err == []


def test_json_is_one_document(command: Command, model: Path, recordings: Path) -> None:
    missing = recordings / "missing.wav"
    outcome = command(
        "transcribe", *FREE, recordings / "b.wav", missing, recordings, "--format", "json", "--model", model
    )
    assert outcome.code == 2
    document = json.loads("\n".join(outcome.out))
    assert document["model"] == str(model)
    results = document["results"]
    paths = [recordings / name for name in ("b.wav", "missing.wav", "a b.flac", "b.wav", "deep/c.ogg")]
    assert [entry["path"] for entry in results] == [str(path) for path in paths]
    assert [list(entry) for entry in results].count(["path", "duration", "text", "segments", "guards", "passes"]) == 4
    assert "does not exist" in results[1]["error"]
    assert results[0] == results[3]
    assert results[0]["duration"] == 0.8
    assert results[0]["text"]


def test_folders_without_recordings_are_in_the_json_document_too(
    command: Command, model: Path, recordings: Path, tmp_path: Path
) -> None:
    (tmp_path / "bare").mkdir()
    paths = [tmp_path / "bare", recordings / "b.wav", tmp_path / "missing.wav"]
    outcome = command("transcribe", *FREE, *paths, "--format", "json", "--model", model)
    assert outcome.code == 2
    results = json.loads("\n".join(outcome.out))["results"]
    assert [entry["path"] for entry in results] == [str(path) for path in paths]
    assert "holds no recordings" in results[0]["error"]
    assert results[1]["text"]
    assert "does not exist" in results[2]["error"]
    assert outcome.err[-1] == "1 transcribed, 2 failed"


def test_a_folder_of_files_in_several_formats(command: Command, model: Path, recordings: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("transcribe", *FREE, recordings, "--format", "txt,srt", "--output_dir", out, "--model", model)
    outcome = command(*arguments)
    assert (outcome.code, outcome.out, outcome.err) == (0, [], ["3 transcribed, 0 failed"])
    names = [f"{name}.{ending}" for name in ("a b", "b", "deep/c") for ending in ("srt", "txt")]
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == names
    assert (out / "b.txt").read_text() == heard(model, recordings / "b.wav") + "\n"


def test_an_interrupted_folder_is_gone_on_with(command: Command, model: Path, recordings: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("transcribe", recordings, "--output_dir", out, "--model", model)
    (recordings / "bad.wav").write_text("no sound")
    outcome = command(*arguments)
    assert outcome.code == 2
    assert outcome.err[-1] == "3 transcribed, 1 failed"
    (out / "b.txt").unlink()
    (out / "a b.txt").write_text("mended by hand")
    outcome = command(*arguments)
    assert outcome.err[-2:] == [
        f"2 already in {out}, left as they are; --overwrite makes them anew",
        "1 transcribed, 1 failed",
    ]
    assert (out / "b.txt").is_file()
    assert (out / "a b.txt").read_text() == "mended by hand"
    assert command(*arguments, "--overwrite").err[-1] == "3 transcribed, 1 failed"
    assert (out / "a b.txt").read_text() != "mended by hand"


def test_tables_and_json_lines_are_printed_as_they_come(command: Command, model: Path, recordings: Path) -> None:
    missing = recordings / "missing.wav"
    lines = command("transcribe", *FREE, missing, recordings, "--format", "jsonl", "--model", model).out
    assert [json.loads(line)["path"] for line in lines] == [
        str(recordings / name) for name in ("missing.wav", "a b.flac", "b.wav", "deep/c.ogg")
    ]
    rows = command("transcribe", *FREE, missing, recordings, "--format", "tsv", "--model", model).out
    assert [row.split("\t")[0] for row in rows] == ["path", *(json.loads(line)["path"] for line in lines[1:])]
    (first, *_) = command("transcribe", *FREE, recordings, "--format", "ctm", "--model", model).out
    assert first.startswith("a_b 1 ")


@pytest.mark.parametrize("output_format", ["json", "txt"])
def test_what_was_finished_outlives_an_interrupt(
    command: Command, model: Path, recordings: Path, monkeypatch: pytest.MonkeyPatch, output_format: str
) -> None:
    transcribe_each = Transcriber.transcribe_each

    def interrupted(self: Transcriber, sources: Any, *options: Any) -> Iterator[Any]:
        yield next(transcribe_each(self, sources, *options))
        raise KeyboardInterrupt

    monkeypatch.setattr(Transcriber, "transcribe_each", interrupted)
    outcome = command("transcribe", *FREE, recordings, "--format", output_format, "--model", model)
    assert outcome.code == 130
    assert outcome.err[-1] == "interrupted"
    first = recordings / "a b.flac"
    if output_format == "json":
        (entry,) = json.loads("\n".join(outcome.out))["results"]
        assert (entry["path"], entry["duration"]) == (str(first), 1.4)
    else:
        assert outcome.out[0].startswith(f"{first}\t")


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
    outcome = command(
        "transcribe", *FREE, recordings / "b.wav", *faults.values(), recordings / "a b.flac", "--model", model
    )
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
    outcome = command("transcribe", *FREE, path, "--model", model)
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
    outcome = command("transcribe", *FREE, tmp_path, "--model", model)
    assert outcome.code == 2
    assert any(line.startswith(f"{good}\t") for line in outcome.out)
    assert "caf\\udce9.wav has a name that is not UTF-8" in outcome.err[0]


@pytest.mark.parametrize("name", ["nanno", "./nowhere", "/no/such/folder"])
def test_an_unknown_model_is_one_line(command: Command, recordings: Path, name: str) -> None:
    outcome = command("transcribe", *FREE, recordings, "--model", name)
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
    outcome = command("transcribe", *FREE, recordings, "--model", broken)
    assert (outcome.code, outcome.out) == (2, [])
    (line,) = outcome.err
    assert str(broken) in line


def test_an_unknown_device_is_one_line(command: Command, model: Path, recordings: Path) -> None:
    outcome = command("transcribe", *FREE, recordings, "--model", model, "--device", "abacus")
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
    outcome = command("train", "--output_dir", str(output_dir), "--epochs", "3")
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


# as a process of its own


def run_process(
    *arguments: str | Path, encoding: str = "utf-8", **environment: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "asr_doge.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONIOENCODING": encoding} | environment,
        timeout=300,
        check=False,
    )


def test_a_real_run_prints_the_texts_and_nothing_else(model: Path, recordings: Path) -> None:
    """No warnings of libraries, no progress bars of others; and a terminal of few letters stops nothing."""
    finished = run_process("transcribe", *FREE, recordings, "--model", model, "--device", "cpu", encoding="ascii")
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


def test_an_unreachable_hub_is_one_line(recordings: Path, tmp_path: Path) -> None:
    nobody = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub"), "NO_PROXY": "127.0.0.1"}
    for arguments in (("transcribe", recordings, "--model", "acme/asr"), ("info", "--model", "acme/asr")):
        finished = run_process(*arguments, **nobody)
        assert (finished.returncode, finished.stdout) == (2, "")
        (line,) = finished.stderr.splitlines()
        assert line.startswith("error: model 'acme/asr' is neither on this machine nor to be had from the hub")


@pytest.mark.skipif(sys.platform == "win32", reason="has no named pipes in folders")
def test_an_interrupt_is_code_130_and_leaves_a_whole_document(model: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.wav"
    os.mkfifo(pipe)
    start = (  # where pytest runs in the background, its children would ignore the signal
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        " from asr_doge.cli import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", start, "transcribe", *FREE, str(pipe), "--format", "json", "--model", str(model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        writer = None
        while writer is None and process.poll() is None:
            try:
                writer = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)  # refused until the command reads
            except OSError:
                time.sleep(0.05)
        assert writer is not None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
        os.close(writer)
    assert process.returncode == 130
    assert json.loads(out)["results"] == []
    assert err == "\ninterrupted\n"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
def test_a_reader_that_stops_early_is_no_error(model: Path, recordings: Path) -> None:
    command = [sys.executable, "-m", "asr_doge.cli", "transcribe", *FREE, str(recordings), "--model", str(model)]
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
    text = one_line(Transcriber(loaded, decoding=DecodingConfig(guard_silence=False)).transcribe(path))
    assert "\n".join(command("transcribe", *FREE, path, "--model", tmp_path / "untrained").out) == "\n".join(
        text.splitlines()
    )
