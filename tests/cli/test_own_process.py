"""Commands as processes of their own: all that they print, signals, and readers that stop early."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from asr_doge.decoding import DecodingConfig
from asr_doge.inference.transcription import Transcriber
from asr_doge.models import assemble_model
from tests.cli.conftest import Command
from tests.cli.recordings import FREE, clip, one_line


def run_process(
    *arguments: str | Path, encoding: str = "utf-8", **environment: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "asr_doge", *map(str, arguments)],
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


def test_a_dataset_of_an_unreachable_hub_is_one_line(tmp_path: Path) -> None:
    """And not one for each try of the libraries."""
    pytest.importorskip("datasets", reason="needs asr-doge[datasets]")
    nobody = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub"), "NO_PROXY": "127.0.0.1"}
    finished = run_process("download", "hub:acme/speech", "--output_dir", tmp_path / "data", **nobody)
    assert (finished.returncode, finished.stdout) == (2, "")
    (line,) = finished.stderr.splitlines()
    assert line.startswith("error: hub:acme/speech cannot be had: ")


def test_loading_from_python_prints_nothing_and_sets_nothing() -> None:
    """What else the process loads with transformers keeps its progress bars."""
    program = (
        "import asr_doge; asr_doge.load('nano', device='cpu');"
        "from transformers.utils import logging; print(logging.is_progress_bar_enabled(), logging.set_tqdm_hook(None))"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    assert (finished.stdout, finished.stderr) == ("True None\n", "")


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
