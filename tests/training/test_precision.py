"""The precision of a run is a flag's, or a measurement's that changes nothing else and is kept."""

from pathlib import Path

import pytest
import torch

from asr_doge.data import read_manifest
from asr_doge.models import LoadedModel, assemble_model
from asr_doge.training.configuration import TrainConfig
from asr_doge.training.datasets import SpeechDataset
from asr_doge.training.examples import NamedExamples
from asr_doge.training.precision import chosen_bf16
from asr_doge.training.record import read_record
from tests.training.conftest import Train


@pytest.fixture
def loaded(granite_folder: Path, doge_folder: Path) -> LoadedModel:
    return assemble_model(str(granite_folder), str(doge_folder), device="cpu", adapter_hidden_dim=8)


@pytest.fixture
def examples(loaded: LoadedModel, corpus: Path) -> NamedExamples:
    return NamedExamples(SpeechDataset(read_manifest(corpus / "train_manifest.json"), loaded.processor))


@pytest.mark.parametrize(
    ("dtype", "before", "expected"),
    [
        ("fp32", {"precision": "bf16"}, False),
        ("bf16", None, True),
        ("auto", {"precision": "bf16"}, True),  # a resumed run goes on in what it had
        ("auto", {"precision": "fp32"}, False),
    ],
)
def test_what_is_told_is_not_measured(
    loaded: LoadedModel, examples: NamedExamples, dtype: str, before: dict[str, str] | None, expected: bool
) -> None:
    config = TrainConfig(dtype=dtype)  # type: ignore[arg-type]
    assert chosen_bf16(config, loaded.model, examples, 4, before) is expected


def test_a_processor_without_instructions_for_bf16_is_not_measured(
    loaded: LoadedModel, examples: NamedExamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    passes: list[object] = []
    loaded.model.register_forward_pre_hook(lambda *called: passes.append(called))
    assert not chosen_bf16(TrainConfig(dtype="auto"), loaded.model, examples, 4, None)
    assert passes == []


def test_measuring_leaves_no_trace(
    loaded: LoadedModel,
    examples: NamedExamples,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    chosen = chosen_bf16(TrainConfig(dtype="auto"), loaded.model, examples, 2, None)
    assert torch.equal(torch.rand(3), expected)
    assert f"precision: {'bf16' if chosen else 'fp32'}, a step in bf16 being" in capsys.readouterr().out
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.model.state_dict().items())
    assert all(parameter.grad is None for parameter in loaded.model.parameters())


def test_the_record_says_what_was_computed_in(run: Train, tmp_path: Path) -> None:
    for dtype in ("bf16", "fp32"):
        run(tmp_path / dtype, dtype=dtype, epochs=1, eval_samples=1)
        assert (read_record(tmp_path / dtype) or {})["precision"] == dtype
