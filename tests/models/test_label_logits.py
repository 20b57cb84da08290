"""In training mode the language model's head computes the logits of labels and no others, and the loss is the same."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_doge.models import LoadedModel, assemble_model
from tests.models import tiny


@pytest.fixture(scope="module", params=["doge", "llama", "gpt2"])
def loaded(
    request: pytest.FixtureRequest, granite_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> LoadedModel:
    make = {"doge": tiny.doge_model, "llama": tiny.llama_model, "gpt2": tiny.gpt2_model}[request.param]
    folder = tiny.save_language_model(make(len(tiny.tokenizer())), tmp_path_factory.mktemp("lm") / request.param)
    made = assemble_model(granite_folder, folder, device="cpu", dtype=torch.float64)
    tiny.randomize(made.model.adapter, seed=1)
    return made


@settings(max_examples=10)
@given(rows=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 7)), min_size=1, max_size=4), extra=st.integers(0, 3))
def test_the_loss_is_that_of_all_logits(loaded: LoadedModel, rows: list[tuple[int, int]], extra: int) -> None:
    model = loaded.model
    speech, mask = tiny.padded(tiny.random_clips([length for length, _ in rows], tiny.SPEECH_SIZE))
    labels = torch.full((len(rows), max(count for _, count in rows) + 1 + extra), -100)
    for row, (_, count) in zip(labels, rows, strict=True):
        row[:count] = torch.arange(3, 3 + count)
    inputs = {"speech_embeddings": speech, "attention_mask": mask, "labels": labels}
    seen: list[float] = []
    head = model.get_output_embeddings()
    hook = head.register_forward_hook(lambda module, given, output: seen.append(output.shape[:-1].numel()))
    gradients = []
    try:
        for mode in (True, False):
            model.train(mode)
            model.zero_grad()
            output = model(**inputs)
            output.loss.backward()
            gradients.append([p.grad.clone() for p in model.adapter.parameters() if p.grad is not None])
            assert output.loss.isfinite()
            seen.append(float(output.loss.detach()))
    finally:
        hook.remove()
        model.train(False)
    packed, first, everything, second = seen
    assert packed == sum(count for _, count in rows)
    assert everything > packed
    assert first == pytest.approx(second)
    assert all(torch.allclose(a, b) for a, b in zip(*gradients, strict=True))
