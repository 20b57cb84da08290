"""Windows of a long text are joined without a seam, whatever is read beside them; a missing model is named."""

from pathlib import Path

import pytest
import torch
from transformers import ModernBertForTokenClassification, PreTrainedTokenizerBase

from asr_doge.errors import CheckpointError
from asr_doge.models.checkpoints import find_model
from asr_doge.models.punctuation import (
    CONTEXT_WORDS,
    FOLDER,
    WINDOW_WORDS,
    Punctuator,
    load_punctuator,
    punctuation_config,
    word_tokens,
)
from asr_doge.text.punctuation import LABELS
from tests.models import tiny

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs", "away", "into", "forest"]


@pytest.fixture(scope="module")
def punctuator() -> Punctuator:
    tokenizer = tiny.tokenizer()
    model = ModernBertForTokenClassification(punctuation_config(tokenizer, 32, 1))
    tiny.randomize(model, seed=1)
    torch.nn.init.zeros_(model.classifier.bias)
    return Punctuator(model, tokenizer)


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
    punctuator.model.save_pretrained(tmp_path / FOLDER)
    punctuator.tokenizer.save_pretrained(tmp_path / FOLDER)
    assert load_punctuator(find_model(tmp_path)).labels(_text(100)) == punctuator.labels(_text(100))
    assert punctuator.model.config.num_labels == len(LABELS) == 15


def test_a_checkpoint_without_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"--text written: .* has no punctuation/config\.json: use --model eng"):
        load_punctuator(find_model(tmp_path))


def test_a_damaged_one_is_named(punctuator: Punctuator, tmp_path: Path) -> None:
    punctuator.model.save_pretrained(tmp_path / FOLDER)
    punctuator.tokenizer.save_pretrained(tmp_path / FOLDER)
    weights = tmp_path / FOLDER / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"punctuation cannot be used: ") as caught:
        load_punctuator(find_model(tmp_path))
    assert "\n" not in str(caught.value)
