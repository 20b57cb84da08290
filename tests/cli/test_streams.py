"""Standard streams that are closed, full or gone, and a folder that is: one line each, and never a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.recordings import FREE

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a shell and /dev/full")


def shell(script: str, folder: Path, python: Path | str = sys.executable) -> "subprocess.CompletedProcess[str]":
    """Run a line of shell in which `asr-doge` is the command."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = ["sh", "-c", script.replace("asr-doge", f"{python} -m asr_doge")]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=environment, timeout=600, check=False
    )


FULL = "error: standard output cannot be written (No space left on device): send it elsewhere"
CLOSED = "error: standard output cannot be written (it is closed): send it elsewhere"


@pytest.mark.parametrize(
    ("command", "code", "finding"),
    [
        ("asr-doge --help >/dev/full", 2, FULL),
        ("PYTHONUNBUFFERED=1 asr-doge --version >/dev/full", 2, FULL),
        ("asr-doge transcribe --help >/dev/full", 2, FULL),
        ("asr-doge --version >&-", 2, CLOSED),
        ("asr-doge transcribe --help >&-", 2, CLOSED),
        ("asr-doge --version 2>&-", 0, ""),
        ("asr-doge --version <&-", 0, ""),
        ("asr-doge --version <&- >/dev/full 2>&-", 2, ""),
        ("asr-doge --version >/dev/full 2>/dev/full", 2, ""),
        ("asr-doge nonsense 2>/dev/full", 2, ""),
    ],
)
def test_output_that_cannot_be_written_is_one_line(tmp_path: Path, command: str, code: int, finding: str) -> None:
    finished = shell(command, tmp_path)
    assert (finished.returncode, finished.stderr.rstrip("\n")) == (code, finding)


@pytest.mark.parametrize("output_format", ["txt", "json"])
@pytest.mark.parametrize(
    ("redirection", "reason"), [(">/dev/full", "No space left on device"), (">&-", "it is closed")]
)
def test_transcripts_that_cannot_be_printed(
    python: Path, model: Path, recordings: Path, output_format: str, redirection: str, reason: str
) -> None:
    options = f"{' '.join(FREE)} --model {model} --format {output_format}"
    finished = shell(f"asr-doge transcribe {recordings}/b.wav {options} {redirection}", recordings, python)
    assert finished.returncode == 2
    assert finished.stderr == f"error: standard output cannot be written ({reason}): send it elsewhere\n"


def test_files_are_written_though_all_streams_are_closed(
    python: Path, model: Path, recordings: Path, tmp_path: Path
) -> None:
    options = f"{' '.join(FREE)} --model {model} --output_dir {tmp_path}/out"
    finished = shell(f"asr-doge transcribe {recordings}/b.wav {options} <&- >&- 2>&-", recordings, python)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")
    assert (tmp_path / "out" / "b.txt").read_text().strip()


def test_a_stream_from_a_closed_input_is_one_line(python: Path, model: Path, tmp_path: Path) -> None:
    finished = shell(f"asr-doge transcribe --stream - --model {model} <&-", tmp_path, python)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr == "error: --stream -: standard input is closed: send samples to it, or name a file\n"


@pytest.mark.parametrize("arguments", ["transcribe a.wav", "process --data_dir a --output_dir b", "info"])
def test_a_working_directory_that_is_gone_is_one_line(tmp_path: Path, arguments: str) -> None:
    finished = shell(f"mkdir gone && cd gone && rmdir ../gone && asr-doge {arguments}", tmp_path)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr == "error: the working directory does not exist any more: change to one that does\n"


def test_a_reader_that_stops_early_ends_help_in_silence(tmp_path: Path) -> None:
    finished = shell("(asr-doge transcribe --help; echo $? >&2) | true", tmp_path)
    assert finished.stderr in ("141\n", "0\n")  # 0 if all was written before it stopped
