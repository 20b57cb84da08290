"""Compiled encoders give what others give, and what cannot be compiled is refused in one line.

The compiler of a device takes a minute here and is not tested: Dynamo's graphs are run as they are.
"""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._inductor.exc import InductorError, InvalidCxxCompiler

from asr_doge.decoding import DecodingConfig
from asr_doge.errors import ConfigError
from asr_doge.inference.configuration import FeaturesConfig
from asr_doge.inference.features import compute_features
from asr_doge.inference.transcription import load
from asr_doge.models import load_encoder_alone, load_model
from asr_doge.models.compiling import check_compilable, compile_encoder
from tests.models import tiny
from tests.speech import write_corpus


def compile_by(backend: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()  # of a function, only so many graphs are kept
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))


def test_graphs_made_at_once_serve_all_batches(checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = CompileCounter()
    compile_by(graphs, monkeypatch)
    plain, loaded = (load_model(checkpoint_folder, device="cpu") for _ in range(2))
    compile_encoder(loaded)
    assert graphs.frame_count == 2
    for seconds in ((6.1, 0.7), (4.9, 11.3, 0.1), (0.3,), (1.4, 0.9), (4.6,)):
        waveforms = [tiny.random_waveform(length, seed=2) for length in seconds]
        with torch.inference_mode():
            wanted, found = (each.speech_encoder.encode(waveforms).speech_embeddings for each in (plain, loaded))
        assert tiny.relative_difference(found, wanted) < 1e-5
    assert graphs.frame_count == 2


REFUSAL = (
    r"^--compile is for encoders of type granite_speech and granite_speech_plus, and this one is of type whisper: leave"
    r" it out$"
)


@pytest.mark.parametrize("files", ["whisper_folder", "head_folder"])
def test_other_encoders_are_refused_by_their_configuration_alone(
    files: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """There are no weights that could be loaded."""
    shutil.copy(request.getfixturevalue(files) / "config.json", tmp_path)
    with pytest.raises(ConfigError, match=REFUSAL):
        check_compilable(tmp_path)


@pytest.mark.parametrize("decoder", [None, "ctc"])
def test_the_default_model_is_refused_before_its_encoder_is_fetched(
    decoder: Literal["ctc"] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASR_DOGE_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=REFUSAL):
        load(device="cpu", decoding=DecodingConfig(decoder=decoder), compile=True)
    assert not any(tmp_path.iterdir())


def test_features_refuses_before_it_loads(whisper_folder: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", train=1, dev=1, test=1)
    (tmp_path / "encoder").mkdir()
    shutil.copy(whisper_folder / "config.json", tmp_path / "encoder")
    config = FeaturesConfig(
        str(tmp_path / "corpus"), speech_encoder=str(tmp_path / "encoder"), device="cpu", compile=True
    )
    with pytest.raises(ConfigError, match=REFUSAL):
        compute_features(config)


def test_a_quantized_encoder_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^--compile does not go with 8-bit matrices: leave it or"):
        load("nano", device="cpu", quantization="int8", compile=True)


def test_a_machine_without_a_compiler_is_told_in_one_line(
    checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Inductor says it where `CXX=/bin/false` (torch 2.11)."""

    def without_compiler(*_: Any) -> Any:
        raise InductorError(InvalidCxxCompiler(), None)

    compile_by(without_compiler, monkeypatch)
    with pytest.raises(
        ConfigError, match=r"^--compile cannot be used on cpu: .*No working C\+\+ compiler .*leave it out$"
    ):
        compile_encoder(load_encoder_alone(checkpoint_folder, device="cpu"))
