"""`asr-doge transcribe` as a user types it: what it prints, where, and with which exit code."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import soundfile

from asr_doge.inference.transcription import Transcriber
from asr_doge.models.checkpoints import BUNDLED_MODELS
from tests import speech
from tests.cli.conftest import Command, Terminal
from tests.cli.recordings import FREE, clip, heard
from tests.models import tiny


def test_one_recording_is_its_text_alone(command: Command, model: Path, recordings: Path) -> None:
    outcome = command("transcribe", *FREE, recordings / "b.wav", "--model", model)
    assert outcome.code == 0
    assert "\n".join(outcome.out) == "\n".join(heard(model, recordings / "b.wav").splitlines())
    assert outcome.err == []


def test_on_a_terminal_a_bar_ends_full_however_long_the_recording_turns_out(
    command: Command, model: Path, recordings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of a long recording may overlap, and are more audio than its file holds."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("asr_doge.cli.transcribe.audio_duration", lambda path: 0.2)
    assert command("transcribe", *FREE, recordings, "--model", model).code == 0
    assert "transcribing 100% " in terminal.getvalue()
    assert " 1 of 1 s of audio " in terminal.getvalue().rpartition("transcribing ")[2]


def test_a_language_that_the_model_is_not_told_is_said_to_be_in_vain(
    command: Command, model: Path, recordings: Path
) -> None:
    outcome = command("transcribe", *FREE, recordings / "b.wav", "--model", model, "--language", "de")
    assert outcome.code == 0
    assert "\n".join(outcome.out) == "\n".join(heard(model, recordings / "b.wav").splitlines())
    (line,) = outcome.err
    assert line == f"--language de has no effect on the text: {model} reads no prompt that names the language"


def test_a_text_is_written_with_case_and_punctuation_and_the_same_words(
    command: Command, model: Path, recordings: Path, tmp_path: Path
) -> None:
    """Quietly, by the model that comes with the checkpoint; here it has random weights."""
    checkpoint = shutil.copytree(model, tmp_path / "checkpoint")
    punctuator = tiny.punctuator(seed=1)
    punctuator.model.save_pretrained(checkpoint / "punctuation")
    punctuator.tokenizer.save_pretrained(checkpoint / "punctuation")
    outcome = command("transcribe", *FREE, recordings / "b.wav", "--model", checkpoint, "--text", "written")
    plain = heard(checkpoint, recordings / "b.wav").split()
    assert (outcome.code, outcome.err) == (0, [])
    assert " ".join(outcome.out).split() == punctuator.write(plain) != plain


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
    assert [list(entry) for entry in results].count(JSON_FIELDS) == 4
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
    files = [path for path in out.rglob("*") if path.is_file() and not path.name.startswith(".")]
    assert sorted(str(path.relative_to(out)) for path in files) == names
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


JSON_FIELDS = ["path", "duration", "text", "segments", "guards", "passes"]


def test_of_a_cut_recording_what_is_there_is_printed(command: Command, model: Path, tmp_path: Path) -> None:
    whole = clip(tmp_path / "whole.flac", 3.0).read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 2])
    outcome = command("transcribe", *FREE, tmp_path / "cut.flac", "--model", model)
    assert outcome.code == 2
    assert len(" ".join(outcome.out)) > 0
    error, summary = outcome.err
    assert error.startswith(f"error: {tmp_path / 'cut.flac'} is truncated or corrupt: ")
    assert summary == "1 transcribed (1 of them incomplete), 0 failed"


def test_a_channel_at_a_time(command: Command, model: Path, tmp_path: Path) -> None:
    left, right = (soundfile.read(clip(tmp_path / f"{n}.wav", 0.8, seed=n))[0] for n in (1, 2))
    (tmp_path / "calls").mkdir()
    soundfile.write(tmp_path / "calls" / "call.wav", np.stack([left, right], axis=1), 16_000)
    (tmp_path / "calls" / "notes.txt").touch()
    (tmp_path / "calls" / "list.m3u").touch()
    texts = [heard(model, tmp_path / f"{n}.wav") for n in (1, 2)]
    call = tmp_path / "calls" / "call.wav"
    for name, text in zip(("left", "right"), texts, strict=True):
        outcome = command("transcribe", *FREE, call, "--model", model, "--channels", name)
        assert (outcome.code, " ".join(" ".join(outcome.out).split()), outcome.err) == (0, text, [])
    outcome = command("transcribe", *FREE, call.parent, "--model", model, "--channels", "each")
    assert outcome.out == [f"{call} [channel {n}]\t{text}" for n, text in enumerate(texts, 1)]
    assert outcome.err == [f"note: {call.parent}: 1 recordings found; passed over: 2 of other types"]
    for _ in range(2):  # the second time they are there already
        outcome = command(
            "transcribe", *FREE, call, "--model", model, "--channels", "each", "--output_dir", tmp_path / "out"
        )
        assert sorted(path.name for path in (tmp_path / "out").glob("*.txt")) == [
            "call.channel1.txt",
            "call.channel2.txt",
        ]
    assert "2 already in" in outcome.err[0]
    outcome = command("transcribe", *FREE, tmp_path / "1.wav", "--model", model, "--channels", "right")
    assert (outcome.code, outcome.err[0]) == (
        2,
        f"error: {tmp_path / '1.wav'} has one channel, and no channel 2: choose another with --channels.",
    )


def faulty(folder: Path) -> dict[str, Path]:
    """Recordings that cannot be transcribed, by what is to be said of them."""
    folder.mkdir()
    (folder / "empty.wav").touch()
    (folder / "letter.wav").write_text("Dear Sir or Madam,\n" * 50)
    soundfile.write(folder / "nan.wav", np.full(8000, np.nan, dtype=np.float32), 16_000, subtype="FLOAT")
    soundfile.write(folder / "nothing.wav", np.zeros(0, dtype=np.float32), 16_000)
    clip(folder / "blip.wav", 0.01)
    (folder / "bare").mkdir()
    return {
        "does not exist": folder / "missing.wav",
        "0 bytes": folder / "empty.wav",
        "not audio": folder / "letter.wav",
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
    assert summary == "2 transcribed, 7 failed"
    assert len(errors) == 7
    for finding, path in faults.items():
        assert [line for line in errors if line.startswith("error: ") and str(path) in line and finding in line]


@pytest.mark.parametrize("number", range(7))
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


# one bad argument among good ones, and what a folder of transcripts remembers


def bad_arguments(folder: Path) -> dict[str, str]:
    """Arguments that no recording can have, each with a word of what is said of it."""
    folder.mkdir()
    (folder / "file").touch()
    loop = folder / "loop.wav"
    loop.symlink_to(loop)
    (folder / "dangling.wav").symlink_to(folder / "nothing")
    return {
        "n" * 300: "File name too long",
        "n" * 5000: "File name too long",
        "/".join(["d" * 200] * 30): "File name too long",
        "\u0436" * 123 + ".wav": "does not exist",
        str(folder / "file" / "a.wav"): "Not a directory",
        str(loop): "Too many levels of symbolic links",
        str(folder / "dangling.wav"): "does not exist",
        "": "an argument is empty",
        "two\nlines.wav": "does not exist",
    }


@pytest.mark.skipif(sys.platform != "linux", reason="other systems word it differently")
@pytest.mark.parametrize("to_folder", [False, True])
def test_one_bad_argument_ends_nothing(
    command: Command, model: Path, recordings: Path, tmp_path: Path, to_folder: bool
) -> None:
    bad = bad_arguments(tmp_path / "bad")
    options = ("--output_dir", tmp_path / "out") if to_folder else ()
    good = (recordings / "b.wav", recordings / "a b.flac")
    outcome = command("transcribe", *FREE, good[0], *bad, good[1], "--model", model, *options)
    assert outcome.code == 2
    assert outcome.err[-1] == f"2 transcribed, {len(bad)} failed"
    assert all(line.startswith("error: ") for line in outcome.err[:-1])
    errors = "\n".join(outcome.err[:-1])
    for argument, finding in bad.items():
        assert argument.replace("\n", "\\n") in errors
        assert finding in errors
    if to_folder:
        assert (tmp_path / "out" / "b.txt").read_text() == heard(model, good[0]) + "\n"
        assert (tmp_path / "out" / "a b.txt").is_file()
    else:
        assert [line.partition("\t")[0] for line in outcome.out if "\t" in line] == [str(path) for path in good]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, to be nobody for a while")
def test_an_unreadable_folder_ends_nothing(command: Command) -> None:
    with TemporaryDirectory() as name:  # pytest's own are closed to all but their owner
        folder = Path(name)
        folder.chmod(0o755)
        closed, good = clip(folder / "closed" / "deep" / "a.wav"), clip(folder / "b.wav")
        (folder / "closed").chmod(0)
        os.seteuid(65534)
        try:
            needed = (sys.prefix, BUNDLED_MODELS["nano"], Path(__file__))
            if not all(os.access(path, os.R_OK, effective_ids=True) for path in needed):
                pytest.skip("other users may not read this environment")
            outcome = command("transcribe", closed, good, closed.parent, "--model", "nano", "--format", "jsonl")
        finally:
            os.seteuid(0)
    assert outcome.code == 2
    assert [json.loads(line)["path"] for line in outcome.out] == [str(closed), str(good), str(closed.parent)]
    *errors, summary = outcome.err
    assert summary == "1 transcribed, 2 failed"
    assert len(errors) == 2
    assert "permission denied" in errors[0]


def test_names_as_long_as_may_be_are_written(command: Command, model: Path, tmp_path: Path) -> None:
    stems = ["x" * 245, "x" * 251, "\u0436" * 123]
    paths = [clip(tmp_path / "in" / f"{stem}.wav", seed=number) for number, stem in enumerate(stems)]
    out = tmp_path / "out"
    arguments = ("transcribe", *FREE, *paths, "--format", "txt,json", "--output_dir", out, "--model", model)
    assert command(*arguments).err == ["3 transcribed, 0 failed"]
    assert (out / f"{stems[0]}.txt").read_text() == heard(model, paths[0]) + "\n"
    assert (out / f"{stems[2]}.json").is_file()
    assert len([path for path in out.iterdir() if path.suffix in (".txt", ".json")]) == 6
    assert command(*arguments).err[0].startswith("3 already in ")


def test_a_file_that_cannot_be_written_costs_its_recording_only(
    command: Command, model: Path, recordings: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / "b.txt").mkdir(parents=True)
    outcome = command("transcribe", *FREE, recordings, "--output_dir", out, "--model", model)
    assert outcome.code == 2
    assert outcome.err[-1] == "2 transcribed, 1 failed"
    assert "b.txt cannot be written (Is a directory)" in outcome.err[0]
    assert (out / "a b.txt").is_file()
    assert (out / "deep" / "c.txt").is_file()


def test_recordings_of_one_name_have_files_of_their_own(command: Command, model: Path, tmp_path: Path) -> None:
    paths = [clip(tmp_path / name / "audio.wav", seed=number) for number, name in enumerate(("d1", "d2"))]
    out = tmp_path / "out"
    options = ("--output_dir", out, "--model", model)
    assert command("transcribe", *FREE, *paths, paths[0], tmp_path / "d1", *options).err == ["2 transcribed, 0 failed"]
    for path in paths:
        assert (out / path.parent.name / "audio.txt").read_text() == heard(model, path) + "\n"
    rows = command("transcribe", *FREE, *paths, "--format", "ctm", "--model", model).out
    assert len({row.split(" ")[0] for row in rows}) == 2


def test_another_recording_model_or_setting_is_made_anew(command: Command, model: Path, tmp_path: Path) -> None:
    first, second = (clip(tmp_path / name / "audio.wav", seed=number) for number, name in enumerate(("d1", "d2")))
    out = tmp_path / "out"

    def err(path: Path, *options: str) -> list[str]:
        return command("transcribe", *FREE, path, "--output_dir", out, "--model", model, *options).err

    anew = f"1 in {out} were of another recording, model or settings, and are made anew"
    assert err(first) == ["1 transcribed, 0 failed"]
    assert err(second) == [anew, "1 transcribed, 0 failed"]
    assert (out / "audio.txt").read_text() == heard(model, second) + "\n"
    assert err(second, "--batch_size", "1")[0].startswith("1 already in ")  # which changes no text
    assert err(second, "--decoder", "greedy")[0] == anew
    clip(second, 0.6, seed=5)
    assert err(second, "--decoder", "greedy")[0] == anew
    assert (out / "audio.txt").read_text() == heard(model, second) + "\n"
