"""What `asr-doge serve` refuses to start with."""

from pathlib import Path

import pytest

from asr_doge.cli import main
from asr_doge.errors import ConfigError
from asr_doge.serving.configuration import ServeConfig
from asr_doge.serving.service import Service


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["--host", "0.0.0.0"], "ASR_DOGE_API_KEY"),
        (["--host", "example.org"], "--allow_without_key"),
        (["--port", "70000"], "0 to 65535"),
        (["--max_requests", "0"], "more than 0"),
        (["--keep_alive", "-1"], "negative"),
        (["--allowed_origins", "example.org"], "https://example.org"),
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--decoder", "ctc", "--num_beams", "4"], "--num_beams"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], remedy: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ASR_DOGE_API_KEY", raising=False)
    assert main(["serve", *arguments]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert remedy in told[0]


def test_a_model_that_cannot_be_compiled_is_refused(head_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--compile is for encoders of type granite_speech"):
        Service(ServeConfig(model=str(head_folder), device="cpu", compile=True))
