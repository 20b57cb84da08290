"""The programs beside the package, run as a user runs them."""

import importlib
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from asr_doge.data import read_manifest
from asr_doge.data.digits import DIGIT_WORDS, split_voices, synthesized_clips
from tests import interpreter, speech
from tests.killing import kill_at_change
from tests.models import tiny

ROOT = Path(__file__).parents[2]


def run_script(name: str, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(ROOT / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        timeout=300,
        check=False,
    )


@pytest.fixture
def fsdd(tmp_path: Path) -> Path:
    for speaker in ("ann", "bob"):
        for digit in range(10):
            for take in (0, 5):
                path = tmp_path / "fsdd" / "recordings" / f"{digit}_{speaker}_{take}.wav"
                speech.write_wav(path, tiny.random_waveform(0.2, seed=digit), rate=8000)
    return tmp_path / "fsdd"


def test_digit_strings_of_recordings_and_of_voices(fsdd: Path, tmp_path: Path) -> None:
    finished = run_script(
        "scripts/make_digit_strings.py",
        *("--digits_dir", fsdd, "--output_dir", tmp_path / "corpus", "--split", "train", "--without", "bob"),
        *("--count", "3", "--synthesized", "2"),
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    manifest = tmp_path / "corpus" / "train.jsonl"
    assert finished.stdout == f"3 strings of each of ann, 2 synthesized: {manifest}\n"
    utterances = read_manifest(manifest)
    assert [utterance.speaker for utterance in utterances[:3]] == ["ann"] * 3
    assert {utterance.speaker for utterance in utterances[3:]} <= set(split_voices().train)
    for utterance in utterances:
        assert set(utterance.text.split()) <= set(DIGIT_WORDS)
        assert utterance.audio_path.is_file()


def test_a_mistake_is_one_line(fsdd: Path, tmp_path: Path) -> None:
    (fsdd / "recordings" / "7_bob_0.wav").unlink()
    (fsdd / "recordings" / "7_bob_5.wav").unlink()
    for folder, named in ((tmp_path, "no all recordings"), (fsdd, "recording of seven by bob")):
        out = tmp_path / "corpus"
        finished = run_script("scripts/make_digit_strings.py", "--digits_dir", folder, "--output_dir", out)
        assert (finished.returncode, finished.stdout) == (2, "")
        (line,) = finished.stderr.splitlines()
        assert line.startswith("error: ")
        assert named in line
        assert not out.exists()


def test_the_published_way_goes_on_wherever_it_is_killed(tmp_path: Path) -> None:
    """`reproduce.sh`, from recordings to the table, each stage killed once as it writes."""
    for speaker, digit, take in itertools.product(("ann", "lucas"), range(10), (0, 5)):
        path = tmp_path / "fsdd" / "recordings" / f"{digit}_{speaker}_{take}.wav"
        speech.write_wav(path, tiny.random_waveform(0.2, seed=digit), rate=8000)
    parts = "speech_encoder: nano/encoder, language_model: nano/language_model, adapter_hidden_dim: 16"
    sizes = "batch_size: 2, epochs: 2, eval_steps: 2, save_steps: 2, eval_samples: 1"
    config = speech.write_yaml(
        tmp_path / "config.yaml",
        [
            "process: {dataset: manifest, min_duration: 0.3}",
            "features: {speech_encoder: nano/encoder}",
            f"train: {{{parts}, {sizes}}}",
            "benchmark: {max_samples: 1, num_speed_runs: 1}",
        ],
    )
    out = tmp_path / "out"
    writes = {"make_digit_strings": 2, "process": 3, "features": 3, "train": 40, "benchmark": 1}

    def kill_once(arguments: list[str]) -> None:
        stage = next((stage for stage in writes if stage in " ".join(arguments[:3])), None)
        if stage is not None and not (tmp_path / stage).exists():
            left = itertools.count(writes[stage], -1)
            (tmp_path / stage).touch()
            kill_at_change(out, lambda: next(left) <= 1)

    for verb in ("process", "features", "train", "benchmark"):
        importlib.import_module(f"asr_doge.cli.{verb}")  # once, for all processes
    command = ["sh", "scripts/reproduce.sh", "--config", str(config), str(tmp_path / "fsdd"), str(out)]
    runs = [run_in(tmp_path, command, kill_once) for _ in range(len(writes) + 1)]
    assert [run.returncode for run in runs] == [137] * len(writes) + [0], runs[-1].stdout
    assert "--resume_from latest" in runs[4].stdout
    *_, wer, _, _, _, trained, utterances, _ = runs[-1].stdout.splitlines()
    assert wer.split()[:2] == ["WER", "%"]
    assert wer.split()[3] == "4.70"
    assert trained.split()[-1] == "1,574,400"
    assert utterances.split() == ["utterances", "1", "200"]
    again = run_in(tmp_path, command, kill_once)
    assert again.returncode == 0
    assert again.stdout.splitlines()[-7:] == runs[-1].stdout.splitlines()[-7:]


def run_in(
    folder: Path, command: list[str], prepare: Callable[[list[str]], None]
) -> "subprocess.CompletedProcess[str]":
    return interpreter.run_script(command, folder, prepare, {"COUNT": "4"})


def test_the_example_transcribes_with_nano(tmp_path: Path) -> None:
    (clip,) = synthesized_clips(1, split_voices().train, seed=3)
    path = speech.write_wav(tmp_path / "digits.wav", np.clip(clip.waveform, -1.0, 1.0))
    finished = run_script("examples/inference.py", "--audio_path", path)
    assert finished.returncode == 0, finished.stderr
    (line,) = finished.stdout.splitlines()
    assert set(line.split()) <= set(DIGIT_WORDS)
    assert line


def test_the_example_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    finished = run_script("examples/inference.py", "--checkpoint_dir", "./none", "--audio_path", tmp_path / "a.wav")
    assert (finished.returncode, finished.stdout) == (2, "")
    (line,) = finished.stderr.splitlines()
    assert line.startswith("error: unknown model './none'")
