"""Windows of a long text are joined without a seam, whatever is read beside them; a missing model is named."""

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from asr_doge.errors import CheckpointError
from asr_doge.models.checkpoints import find_model
from asr_doge.models.punctuation import (
    CONTEXT_WORDS,
    FOLDER,
    WINDOW_WORDS,
    Punctuator,
    load_punctuator,
    word_tokens,
)
from asr_doge.text.punctuation import LABELS
from tests.models import tiny

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs", "away", "into", "forest"]


@pytest.fixture(scope="module")
def punctuator() -> Punctuator:
    return tiny.punctuator(seed=1)


def _text(count: int) -> list[str]:
    return [WORDS[(place * place + place // 7) % len(WORDS)] for place in range(count)]


@pytest.mark.parametrize("count", [0, 1, 19, 20, 21, 59, 60, 61, 100, 101, 2000])
def test_each_word_gets_a_form_and_none_is_changed(punctuator: Punctuator, count: int) -> None:
    words = _text(count)
    written = punctuator.write(words)
    assert len(written) == count
    assert [form.rstrip(",.?!").lower() for form in written] == words


def test_a_word_is_labelled_by_the_window_where_it_has_most_context(punctuator: Punctuator) -> None:
    """The windows as the module states them, one by one, without the padding of a batch."""
    words = _text(173)
    step = WINDOW_WORDS - 2 * CONTEXT_WORDS
    expected: dict[int, int] = {}
    start = 0
    while True:
        ids, ends = _row(punctuator.tokenizer, words[start : start + WINDOW_WORDS])
        with torch.no_grad():
            labels = punctuator.model(input_ids=ids).logits[0].argmax(-1)[ends].tolist()
        for place, label in enumerate(labels, start):
            if place >= start + CONTEXT_WORDS or place not in expected:
                expected[place] = label
        if start + WINDOW_WORDS >= len(words):
            break
        start += step
    assert punctuator.labels(words) == [expected[place] for place in range(len(words))]
    assert len(set(expected.values())) > 3, "the model tells nothing apart, so the test would not either"


def _row(tokenizer: PreTrainedTokenizerBase, words: list[str]) -> tuple[torch.Tensor, list[int]]:
    ids: list[int] = []
    ends = []
    for tokens in word_tokens(tokenizer, words):
        ids += tokens
        ends.append(len(ids) - 1)
    return torch.tensor([ids]), ends


def test_a_word_of_many_tokens_fits(punctuator: Punctuator) -> None:
    assert len(punctuator.write(["x" * 500] * WINDOW_WORDS)) == WINDOW_WORDS


def test_saved_and_loaded_it_labels_the_same(punctuator: Punctuator, tmp_path: Path) -> None:
    _save(punctuator, tmp_path)
    assert load_punctuator(find_model(tmp_path)).labels(_text(100)) == punctuator.labels(_text(100))
    assert punctuator.model.config.num_labels == len(LABELS) == 15


def test_a_checkpoint_without_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"--text written: .* has no punctuation/config\.json: copy that of eng"):
        load_punctuator(find_model(tmp_path))


OTHER = b'{"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}'
"""A configuration of a model of other shapes; of one that says nothing the model would be large."""


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *itertools.product(
            ("model.safetensors", "config.json", "tokenizer.json"), (b"", b"[]", b'{"layer_types": "?"}')
        ),
        *(("model.safetensors", b"{}"), ("config.json", OTHER), ("tokenizer.json", b"{}")),
    ],
)
def test_a_damaged_one_is_named(punctuator: Punctuator, tmp_path: Path, name: str, content: bytes) -> None:
    _save(punctuator, tmp_path)
    (tmp_path / FOLDER / name).write_bytes(content)
    with pytest.raises(CheckpointError, match="punctuation") as caught:
        load_punctuator(find_model(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_missing_weight_is_named(punctuator: Punctuator, tmp_path: Path) -> None:
    _save(punctuator, tmp_path)
    weights = load_file(tmp_path / FOLDER / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, tmp_path / FOLDER / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing weights classifier\.weight"):
        load_punctuator(find_model(tmp_path))


def _save(punctuator: Punctuator, folder: Path) -> None:
    punctuator.model.save_pretrained(folder / FOLDER)
    punctuator.tokenizer.save_pretrained(folder / FOLDER)
