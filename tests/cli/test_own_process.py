"""Commands as processes of their own: all that they print, signals, and readers that stop early."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from asr_doge.decoding import DecodingConfig
from asr_doge.inference.transcription import Transcriber
from asr_doge.models import assemble_model
from tests.cli.conftest import Command
from tests.cli.recordings import FREE, clip, one_line

FRESH = """
import sys
import asr_doge
asr_doge.load("nano", device="cpu")
from transformers.utils import logging
print(logging.is_progress_bar_enabled(), logging.set_tqdm_hook(None))
print("loaded", file=sys.stderr)
from asr_doge.cli import main
for command in {commands!r}:
    print(main(command))
"""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[str]]:
    """Lines on standard output and standard error of a Python that loads a model, and then makes four mistakes."""
    folder = tmp_path_factory.mktemp("fresh")
    commands = [
        ["train", "--data_dir", str(folder / "nowhere")],
        ["transcribe", str(clip(folder / "a.wav")), "--model", "acme/asr"],
        ["info", "--model", "acme/asr"],
        ["download", "hub:acme/speech", "--output_dir", str(folder / "data")],
    ]
    nobody = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(folder / "hub"), "NO_PROXY": "127.0.0.1"}
    start = [sys.executable, "-c", FRESH.format(commands=commands)]
    finished = subprocess.run(start, capture_output=True, text=True, env=os.environ | nobody, timeout=300, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.splitlines(), finished.stderr.splitlines()


def test_a_real_run_prints_the_texts_and_nothing_else(model: Path, recordings: Path) -> None:
    """No warnings of libraries, no progress bars of others; and a terminal of few letters stops nothing."""
    options = ["--model", str(model), "--device", "cpu"]
    finished = subprocess.run(
        [sys.executable, "-m", "asr_doge", "transcribe", *FREE, str(recordings), *options],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0
    assert finished.stderr == ""
    assert [line.partition("\t")[0] for line in finished.stdout.splitlines()] == [
        str(recordings / name) for name in ("a b.flac", "b.wav", "deep/c.ogg")
    ]


def test_a_mistake_ends_a_real_run_with_exit_code_2(python: Path, tmp_path: Path) -> None:
    command = [str(python), "-m", "asr_doge", "train", "--data_dir", str(tmp_path / "nowhere")]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert len(finished.stderr.splitlines()) == 1


def test_loading_from_python_prints_nothing_and_sets_nothing(fresh: tuple[list[str], list[str]]) -> None:
    """What else the process loads with transformers keeps its progress bars."""
    out, err = fresh
    assert (out[0], err[0]) == ("True None", "loaded")


def test_mistakes_in_a_real_run_are_one_line_each(fresh: tuple[list[str], list[str]]) -> None:
    """And those of a hub that cannot be reached are not one for each try of the libraries."""
    out, err = fresh
    assert out[1:] == ["2", "2", "2", "2"]
    data, *models, dataset = err[1:]
    assert data.startswith("error: ")
    assert "nowhere/train_manifest.json" in data
    assert len(models) == 2
    for line in models:
        assert line.startswith("error: model 'acme/asr' is neither on this machine nor to be had from the hub")
    assert dataset.startswith("error: ")
    if find_spec("datasets") is not None:
        assert dataset.startswith("error: hub:acme/speech cannot be had: ")


@pytest.mark.skipif(sys.platform == "win32", reason="has no named pipes in folders")
def test_an_interrupt_is_code_130_and_leaves_a_whole_document(python: Path, model: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.wav"
    os.mkfifo(pipe)
    start = (  # where pytest runs in the background, its children would ignore the signal
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        " from asr_doge.cli import main; sys.exit(main())"
    )
    command = [str(python), "-c", start, "transcribe", *FREE, str(pipe), "--format", "json", "--model", str(model)]
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
def test_a_reader_that_stops_early_is_no_error(python: Path, model: Path, recordings: Path) -> None:
    command = [str(python), "-m", "asr_doge", "transcribe", *FREE, str(recordings), "--model", str(model)]
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
