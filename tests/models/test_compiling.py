"""Compiled encoders give what others give, and what cannot be compiled is refused in one line.

The compiler of a device takes a minute here and is not tested: Dynamo's graphs are run as they are.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._inductor.exc import InductorError, InvalidCxxCompiler

from asr_doge.errors import ConfigError
from asr_doge.models import load_encoder_alone, load_model
from asr_doge.models.compiling import compile_encoder
from tests.models import tiny


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


def test_an_encoder_without_such_blocks_is_refused(whisper_folder: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^--compile is for Granite Speech's encoder, .* WhisperSpeechEncoder: leave"
    ):
        compile_encoder(load_encoder_alone(whisper_folder, device="cpu"))


def test_a_quantized_encoder_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^--compile does not go with 8-bit matrices: leave it or"):
        compile_encoder(load_encoder_alone("nano", device="cpu", quantization="int8"))


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
