"""The programs beside the package, run as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from asr_doge.data import read_manifest
from asr_doge.data.digits import DIGIT_WORDS, split_voices, synthesized_clips
from tests import speech
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
