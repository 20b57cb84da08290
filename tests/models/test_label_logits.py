"""In training mode the language model's head computes the logits of labels and no others, and the loss is the same."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_doge.choices import Quantization, TrainLanguageModel
from asr_doge.decoding import DecodingConfig
from asr_doge.decoding.decoders import build_decoder
from asr_doge.errors import ConfigError
from asr_doge.models import LoadedModel, assemble_model, load_model
from asr_doge.models.quantization import Int8Linear
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


@settings(max_examples=10)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=3), others=st.sets(st.integers(3, 60), max_size=9))
def test_the_loss_over_some_tokens_leaves_the_others_out_of_the_softmax(
    loaded: LoadedModel, lengths: list[int], others: set[int]
) -> None:
    model = loaded.model
    speech, mask = tiny.padded(tiny.random_clips(lengths, tiny.SPEECH_SIZE))
    labels = torch.tensor([[5, 9, 7]] * len(lengths))
    inputs = {"speech_embeddings": speech, "attention_mask": mask, "labels": labels}
    everything = model(**inputs).logits[:, :-1].detach()
    kept = sorted({5, 7, 9} | others)
    expected = (
        -everything[..., kept].log_softmax(dim=-1)[:, range(3), [kept.index(token) for token in (5, 9, 7)]].mean()
    )
    model.restrict_vocabulary([3, 5])
    model.restrict_vocabulary(kept)
    try:
        model.train()
        packed = model(**inputs)
        model.eval()
        whole = model(**inputs)
        written = [
            model.generate(speech_embeddings=speech, attention_mask=mask, max_new_tokens=4, num_beams=beams)
            for beams in (1, 3)
        ]
    finally:
        model.eval()
        model.restrict_vocabulary(None)
    assert packed.logits.shape[-1] == len(kept)
    assert float(packed.loss.detach()) == pytest.approx(float(expected))
    assert float(whole.loss.detach()) == pytest.approx(float(expected))
    # Transformers writes padding after the end of a row.
    assert {token for ids in written for token in ids.flatten().tolist()} <= {
        *kept,
        loaded.processor.tokenizer.pad_token_id,
    }
    assert torch.equal(model(**inputs).logits[:, :-1], everything)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_loss_of_a_label_that_may_not_be_written_is_infinite(loaded: LoadedModel, mode: str) -> None:
    model = loaded.model
    speech, mask = tiny.padded(tiny.random_clips([4, 7], tiny.SPEECH_SIZE))
    inputs = {"speech_embeddings": speech, "attention_mask": mask}
    model.restrict_vocabulary([5, 9, 20])
    try:
        model.train(mode == "train")
        losses = [
            float(model(**inputs, labels=torch.tensor([[5, 9], labels])).loss.detach())
            for labels in ([20, -100], [7, 5], [5, 30])
        ]
    finally:
        model.eval()
        model.restrict_vocabulary(None)
    assert [math.isfinite(loss) for loss in losses] == [True, False, False]


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("choice", ["none", "lora", "full"])
def test_a_checkpoint_goes_on_writing_some_tokens_only(
    granite_folder: Path, tmp_path: Path, choice: TrainLanguageModel, quantization: Quantization
) -> None:
    folder = tiny.save_language_model(tiny.llama_model(len(tiny.tokenizer())), tmp_path / "lm")
    made = assemble_model(granite_folder, folder, device="cpu", train_language_model=choice)
    made.model.restrict_vocabulary([9, 5])
    made.save(tmp_path / "model")
    speech, mask = tiny.padded(tiny.random_clips([4, 7], tiny.SPEECH_SIZE))
    again = load_model(tmp_path / "model", device="cpu", dtype=torch.float32, quantization=quantization)
    for model in (made.model, again.model):
        logits = model(speech_embeddings=speech.float(), attention_mask=mask).logits[:, -1]
        assert set(logits.topk(2).indices.flatten().tolist()) == {5, 9}
        assert float(logits.softmax(dim=-1)[:, [5, 9]].sum(dim=-1).min()) == pytest.approx(1)
    if quantization == "int8":
        assert isinstance(again.model.get_output_embeddings(), Int8Linear)


def test_fusion_needs_every_word(granite_folder: Path, tmp_path: Path) -> None:
    folder = tiny.save_language_model(tiny.doge_model(len(tiny.tokenizer())), tmp_path / "lm")
    made = assemble_model(granite_folder, folder, device="cpu")
    made.model.restrict_vocabulary([9, 5])
    with pytest.raises(ConfigError, match="--vocabulary texts"):
        build_decoder(DecodingConfig(decoder="fusion"), made)
