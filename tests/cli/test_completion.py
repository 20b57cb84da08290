"""Shell completion: the script is sourced by the shell itself, which is asked what it would complete."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from asr_doge.cli import main
from asr_doge.cli.completion import SHELLS

pytest.importorskip("shtab")

ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}; COMPREPLY=()
_shtab_asr_doge
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "asr-doge.bash"
    command = [sys.executable, "-m", "asr_doge", "--print_completion", "bash"]
    path.write_bytes(subprocess.run(command, check=True, capture_output=True).stdout)
    return path


def completions(script: Path, *words: str, folder: Path | None = None) -> set[str]:
    command = ["bash", "-c", ASK, "bash", str(script), "asr-doge", *words]
    found = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder).stdout
    return set(found.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_flags_choices_and_files(script: Path, tmp_path: Path) -> None:
    assert completions(script, "tr") == {"transcribe", "train"}
    assert completions(script, "pretrain", "") >= {"ctc_head", "encoder", "language_model"}
    assert completions(script, "pretrain", "ctc_head", "--resu") == {"--resume_from"}
    assert completions(script, "transcribe", "--time") == {"--timestamps"}
    assert completions(script, "transcribe", "--decoder", "f") == {"fusion"}
    assert completions(script, "train", "--train_language_model", "l") == {"lora"}
    (tmp_path / "recording.mp3").touch()
    (tmp_path / "folder").mkdir()
    assert completions(script, "transcribe", "rec", folder=tmp_path) == {"recording.mp3"}
    assert completions(script, "transcribe", "--output_dir", "fol", folder=tmp_path) == {"folder"}
    assert completions(script, "benchmark", "--peer", "rec", folder=tmp_path) == {"recording.mp3"}
    assert not completions(script, "download", "--splits+")


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_gets_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print_completion", shell]) == 0
    written = capsys.readouterr().out
    assert "timestamps" in written
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=written, check=True, text=True)


def test_another_shell_and_a_missing_library_are_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["--print_completion", "fish"]) == 2
    assert "choose from bash, zsh, tcsh" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print_completion", "bash"]) == 2
    assert "pip install 'asr-doge[completion]'" in capsys.readouterr().err
