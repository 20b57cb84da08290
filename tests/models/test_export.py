"""The ONNX graphs of nano, with half of its layers, give its numbers and its texts."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnxruntime import InferenceSession
from torch import Tensor

from asr_doge.audio import SAMPLE_RATE
from asr_doge.data.digits import split_voices, synthesized_clips
from asr_doge.decoding import DecodingConfig
from asr_doge.errors import ConfigError
from asr_doge.inference.transcription import Transcriber
from asr_doge.models import LoadedModel, load_model
from asr_doge.models.encoders import length_mask
from asr_doge.models.export import ENCODER_GRAPH, LANGUAGE_MODEL_GRAPH, SPEECH_TOKEN, LanguageModelGraph, export_onnx
from tests.models import tiny
from tests.models.tracing import without_collections

EXAMPLE = Path(__file__).parents[2] / "examples" / "onnx_inference.py"


@pytest.fixture(scope="module")
def nano() -> LoadedModel:
    """Two layers of each kind: to trace one more takes seconds."""
    loaded = load_model("nano", device="cpu")
    encoder: Any = loaded.model.encoder.encoder
    language_model: Any = loaded.model.language_model
    encoder.layers, encoder.num_layers = encoder.layers[:2], 2
    language_model.model.layers = language_model.model.layers[:2]
    language_model.config.num_hidden_layers = 2
    return loaded


@pytest.fixture(scope="module")
def folder(nano: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "onnx"
    with without_collections():
        export_onnx(nano, folder)
    return folder


@pytest.fixture(scope="module")
def speech_encoder(folder: Path) -> InferenceSession:
    return InferenceSession(folder / ENCODER_GRAPH)


@pytest.fixture(scope="module")
def state(folder: Path) -> InferenceSession:
    return InferenceSession(folder / LANGUAGE_MODEL_GRAPH)


def run(session: Any, *inputs: Tensor) -> list[Tensor]:
    names = [each.name for each in session.get_inputs()]
    outputs = session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
    return [torch.from_numpy(output) for output in outputs]


@settings(max_examples=15)
@example(lengths=[1, 401, 200], extra=3)
@given(lengths=st.lists(st.integers(1, 420), min_size=1, max_size=3), extra=st.integers(0, 20))
def test_hearing_is_the_models(
    nano: LoadedModel, speech_encoder: InferenceSession, lengths: list[int], extra: int
) -> None:
    features, mask = tiny.padded([clip.float() for clip in tiny.random_clips(lengths)], padding=9.0, extra=extra)
    with torch.inference_mode():
        encoded = nano.model.encode(features, mask, return_ctc_logits=True)
        expected, expected_lengths = nano.model.adapter(encoded.speech_embeddings, encoded.speech_lengths)
    speech, speech_lengths, log_probs = run(speech_encoder, features, mask.sum(dim=1))
    assert torch.equal(speech_lengths, expected_lengths)
    real = length_mask(expected_lengths, expected.shape[1])
    assert tiny.relative_difference(speech[real], expected[real]) < 1e-4
    assert encoded.ctc_logits is not None
    frames = mask.bool()
    assert tiny.relative_difference(log_probs[frames], encoded.ctc_logits[frames].log_softmax(dim=-1)) < 1e-4


@settings(max_examples=15)
@example(batch=1, new=1, past=0)
@example(batch=3, new=1, past=40)
@given(batch=st.integers(1, 3), new=st.integers(1, 50), past=st.integers(0, 50))
def test_reading_is_the_models(nano: LoadedModel, state: InferenceSession, batch: int, new: int, past: int) -> None:
    generator = torch.Generator().manual_seed(new)
    layers, _, _, heads, _, size = state.get_inputs()[3].shape
    width = state.get_inputs()[1].shape[2]
    token_ids = torch.randint(3, 300, (batch, new), generator=generator)
    token_ids[:, 1::3] = SPEECH_TOKEN
    mask = torch.ones(batch, past + new, dtype=torch.long)
    mask[0, : past // 2] = 0  # padding, on the left
    inputs = (
        token_ids,
        torch.randn(batch, new, width, generator=generator),
        mask,
        torch.randn(layers, 2, batch, heads, past, size, generator=generator),
    )
    with torch.inference_mode():
        logits, cache = LanguageModelGraph(nano.model)(*inputs)
    found, read = run(state, *inputs)
    assert tiny.relative_difference(found, logits) < 1e-4
    assert tiny.relative_difference(read, cache) < 1e-4


def test_the_example_writes_what_greedy_writes(nano: LoadedModel, folder: Path, tmp_path: Path) -> None:
    transcriber = Transcriber(nano, decoding=DecodingConfig(decoder="greedy"))
    texts = set()
    for number, clip in enumerate(synthesized_clips(2, split_voices().unseen, seed=11)):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, np.clip(clip.waveform, -1, 1), SAMPLE_RATE)
        command = [sys.executable, str(EXAMPLE), str(folder), str(path)]
        finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout.strip() == transcriber.transcribe([path])[0].text
        texts.add(finished.stdout)
    assert len(texts) == 2


def test_a_folder_that_exists_is_left_alone(nano: LoadedModel, folder: Path) -> None:
    before = sorted(folder.iterdir())
    with pytest.raises(ConfigError, match="exists: choose a new folder"):
        export_onnx(nano, folder)
    assert sorted(folder.iterdir()) == before


def test_an_interrupted_export_leaves_nothing(
    nano: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(graph: Any, inputs: Any, path: Path) -> None:
        path.write_bytes(b"the first half")
        raise KeyboardInterrupt

    monkeypatch.setattr("asr_doge.models.export.write_graph", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_onnx(nano, tmp_path / "made" / "onnx")
    assert list((tmp_path / "made").iterdir()) == []
