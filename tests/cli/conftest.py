"""The command run in this process, and a model for it that writes briefly."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from asr_doge.cli import main
from tests import speech
from tests.cli.recordings import clip


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code and the lines it printed."""

    code: int
    out: list[str]
    err: list[str]


Command = Callable[..., Outcome]


class Terminal(io.StringIO):
    """Somebody looks at it."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `asr-doge` with some arguments."""

    def run(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out.splitlines(), captured.err.splitlines())

    return run


@pytest.fixture(scope="package")
def model(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that writes 12 tokens a recording."""
    return speech.brief_checkpoint(checkpoint_folder, tmp_path_factory.mktemp("cli") / "checkpoint")


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """A folder with three recordings in it and below."""
    clip(tmp_path / "talks" / "b.wav", 0.8, seed=1)
    clip(tmp_path / "talks" / "a b.flac", 1.4, seed=2)
    clip(tmp_path / "talks" / "deep" / "c.ogg", 0.5, seed=3)
    return tmp_path / "talks"
