"""Weights & Biases, offline: a run is logged under the names that were given, and only if it is wanted."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from asr_doge.errors import ConfigError
from tests.training.conftest import Train


@pytest.fixture(autouse=True)
def log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Where runs are logged to."""
    wandb = pytest.importorskip("wandb", reason="needs asr-doge[wandb]")  # here, as it takes a second
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    yield tmp_path / "wandb"
    wandb.teardown()  # else the next test has these settings too


def test_a_run_is_logged_offline(run: Train, tmp_path: Path, log: Path) -> None:
    options = {"wandb_project": "spoken-digits", "wandb_entity": "a-team", "wandb_run_name": "first-try"}
    run(tmp_path / "run", epochs=1, eval_steps=3, save_steps=3, **options)
    (logged,) = log.glob("offline-run-*/run-*.wandb")
    content = logged.read_bytes()
    for name in (*options.values(), "train/loss", "eval/cer", "learning_rate"):
        assert name.encode() in content


def test_nothing_is_logged_where_it_is_not_wanted(run: Train, tmp_path: Path, log: Path) -> None:
    run(tmp_path / "run", epochs=1, wandb_project="spoken-digits", no_wandb=True)
    assert not log.exists()


def test_without_a_login_one_line_says_what_to_do(run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "nobody"))
    with pytest.raises(ConfigError, match=r"--wandb_project spoken-digits: .*'wandb login'.*--no_wandb") as caught:
        run(tmp_path / "run", epochs=1, wandb_project="spoken-digits")
    assert "\n" not in str(caught.value)
