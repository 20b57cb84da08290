"""The exported graph of each encoder family gives the model's speech and log-posteriors, whatever the batch.

Granite Speech 3.3 and Whisper are in `tests/models/test_export.py` and `test_dense.py`.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnxruntime import InferenceSession

from asr_doge.models import LoadedModel, assemble_model
from asr_doge.models.encoders import length_mask
from asr_doge.models.export import EncoderGraph, write_graph
from tests.models import tiny, tiny_encoders
from tests.models.tracing import without_collections

FAMILIES = ("wav2vec2", "parakeet", "wavlm")


@dataclass(frozen=True)
class Exported:
    """A model and the graph of its encoder and adapter."""

    loaded: LoadedModel
    session: InferenceSession
    size: int


def batch(lengths: list[int], size: int, extra: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Input features with noise in the padding, and their mask."""
    clips = [clip.float() for clip in tiny.random_clips(lengths, size=size)]
    features, mask = tiny.padded(clips, padding=9.0, extra=extra)
    return features[..., 0] if size == 1 else features, mask


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request: pytest.FixtureRequest, doge_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("models")
    encoder = tiny_encoders.save(request.param, folder / request.param)
    loaded = assemble_model(encoder, doge_folder, device="cpu", adapter_hidden_dim=16)
    tiny.randomize(loaded.model.adapter, seed=1)
    loaded.model.eval()
    size = tiny_encoders.FEATURES.get(request.param, 1)
    features, mask = batch([90, 61], size)
    with without_collections():
        write_graph(EncoderGraph(loaded.model), (features, mask.sum(dim=1)), folder / "encoder.onnx")
    return Exported(loaded, InferenceSession(folder / "encoder.onnx"), size)


@settings(max_examples=10)
@example(lengths=[1], extra=0)
@example(lengths=[1, 41, 333], extra=3)
@given(lengths=st.lists(st.integers(1, 500), min_size=1, max_size=3), extra=st.integers(0, 60))
def test_the_graph_gives_what_the_model_gives(exported: Exported, lengths: list[int], extra: int) -> None:
    features, mask = batch(lengths, exported.size, extra)
    model = exported.loaded.model
    with torch.inference_mode():
        encoded = model.encode(features, mask, return_ctc_logits=True)
        expected, expected_lengths = model.adapter(encoded.speech_embeddings, encoded.speech_lengths)
    assert encoded.ctc_logits is not None
    assert encoded.ctc_lengths is not None
    feed = {"input_features": features.numpy(), "input_lengths": mask.sum(dim=1).numpy()}
    speech, speech_lengths, log_probs = map(torch.from_numpy, exported.session.run(None, feed))
    assert torch.equal(speech_lengths, expected_lengths)
    real = length_mask(expected_lengths, expected.shape[1])
    assert tiny.relative_difference(speech[:, : expected.shape[1]][real], expected[real]) < 1e-4
    frames = length_mask(encoded.ctc_lengths, encoded.ctc_logits.shape[1])
    found = log_probs[:, : encoded.ctc_logits.shape[1]][frames]
    assert tiny.relative_difference(found, encoded.ctc_logits[frames].log_softmax(dim=-1)) < 1e-4
