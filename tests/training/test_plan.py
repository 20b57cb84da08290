"""The memory that a plan predicts is about what training takes."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from asr_doge.cli import main
from asr_doge.models import ParameterCounts, assemble_model
from asr_doge.training.plan import MemoryPlan, plan_memory
from tests.training.conftest import Settings

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell a process's peak")
def test_the_prediction_is_within_a_quarter_of_the_peak(python: Path) -> None:
    """Of `bench/memory.py`, at smaller sizes: the adapter alone, LoRA, and the whole language model."""
    smaller = ({"batch": 12}, {"batch": 8}, {"layers": 2, "batch": 3})
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'bench')!r}); import memory;"
        f"memory.SIZES = [size | smaller for size, smaller in zip(memory.SIZES, {smaller}, strict=True)]; memory.main()"
    )
    command = [str(python), "-c", program]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stderr
    sizes = [json.loads(line) for line in finished.stdout.splitlines()]
    assert [size["train"] for size in sizes] == ["none", "lora", "full"]
    for size in sizes:
        assert 0.75 < size["ratio"] < 1.25, size


@pytest.mark.parametrize(("batch_size", "available", "largest"), [(4, 1000, 4), (5, 1000, 4), (1, 699, 0), (1, 210, 0)])
def test_the_largest_batch_is_the_last_that_fits(batch_size: int, available: int, largest: int) -> None:
    planned = MemoryPlan(ParameterCounts(10, 2, 10, 2), 100, 400, 100, 100, batch_size, available)
    assert planned.largest_batch == largest
    assert planned.fits == (batch_size <= largest) == (planned.total <= available)


@pytest.mark.parametrize("bf16", [False, True])
def test_what_is_kept_once_is_not_taken_for_an_utterance_s(granite_folder: Path, doge_folder: Path, bf16: bool) -> None:
    """Autocast keeps copies of the weights for the backward pass, one for the whole batch."""
    model = assemble_model(granite_folder, doge_folder, device="cpu").model
    model.requires_grad_(True)
    clip = {"speech_embeddings": torch.randn(1, 6, model.encoder.hidden_size), "labels": torch.tensor([[5, 9, 1]])}
    three = {name: torch.cat([tensor] * 3) for name, tensor in clip.items()}
    one, all_three = (plan_memory(model, batch, 1, bf16=bf16).activations for batch in (clip, three))
    assert all_three == pytest.approx(3 * one, rel=0.03)


def test_a_plan_is_printed_and_nothing_is_trained(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(tmp_path / "run")
    names = ("data_dir", "features_dir", "output_dir", "speech_encoder", "language_model", "device")
    flags = [f"--{name}={getattr(config, name)}" for name in names]
    assert main(["train", *flags, "--plan"]) == 0
    *_, parameters, memory, highest = capsys.readouterr().out.splitlines()
    assert "trained 29,216 " in parameters
    assert "activations of 16 × the longest utterance" in memory
    assert "utterances at once fit" in highest
    assert not list((tmp_path / "run").rglob("*.safetensors"))
