"""Priors of words against transformers' own loss, together or alone, with early and modern Doge and Llama."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DogeConfig, LlamaConfig, PreTrainedConfig, PreTrainedModel

from asr_doge.decoding import language_model_scorer
from asr_doge.decoding.language_model_scorer import LanguageModelScorer
from asr_doge.models.early_doge import EarlyDogeConfig
from asr_doge.models.language_model import build_language_model

SHAPE: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 2,
}
FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "doge": lambda: DogeConfig(**SHAPE),
    "early doge": lambda: EarlyDogeConfig(**SHAPE),
    "llama": lambda: LlamaConfig(**SHAPE),
}


def _language_model(family: str = "doge") -> PreTrainedModel:
    torch.manual_seed(0)
    model = build_language_model(FAMILIES[family]()).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return model


def _tokenize(texts: Sequence[str]) -> list[list[int]]:
    """Letters, but "b c" is one token, which is two after a lone "b"; "-" has none."""
    return [[30 if part == "b c" else 3 + ord(part) % 26 for part in re.findall("b c|[a-z]", text)] for text in texts]


def _scorer(
    model: PreTrainedModel, texts: Sequence[str], weight: float = 1.0, bonus: float = 0.0
) -> LanguageModelScorer:
    """One to be asked about `[number of a text]`."""
    return LanguageModelScorer(model, 0, lambda ids: texts[ids[0]], _tokenize, weight, bonus)


def _ask(scorer: LanguageModelScorer, numbers: Sequence[int]) -> list[float]:
    """The scores of texts by their numbers."""
    return scorer([scorer.complete_words([number]) for number in numbers])


def _log_prob(model: PreTrainedModel, text: str, *ends: int) -> float:
    """By transformers' own loss."""
    ids = torch.tensor([[0, *_tokenize([text])[0], *ends]])
    if ids.shape[1] == 1:
        return 0.0
    return -float(model(input_ids=ids, labels=ids).loss.detach()) * (ids.shape[1] - 1)


@pytest.mark.parametrize(
    ("spelled", "complete"),
    [
        ("", ""),
        ("ab", ""),
        ("ab ", "ab"),
        (" ab c", "ab"),
        ("a b c d", "a b c"),
        ("a dog b c c x", "a dog b c c"),
        ("xyz  w ", "xyz w"),
        ("- - ab - c", "- - ab -"),
    ],
)
def test_the_prior_of_complete_words_is_the_language_models_own_loss(spelled: str, complete: str) -> None:
    model = _language_model()
    beginnings = [spelled[:length] for length in range(len(spelled) + 1)]
    scorer = _scorer(model, beginnings, weight=0.5, bonus=2.0)
    for place in range(len(spelled)):
        _ask(scorer, [place])  # as a search asks: from the shortest on
    expected = 0.5 * _log_prob(model, complete) + 2.0 * len(complete.split())
    assert _ask(scorer, [len(spelled)]) == pytest.approx([expected], rel=1e-4)


words = st.lists(st.sampled_from(["a", "b", "c", "dog", "elephant", "-"]), max_size=7).map(
    lambda found: " ".join(found) + " "
)


@pytest.mark.parametrize("family", list(FAMILIES))
@settings(deadline=None, max_examples=15)
@given(calls=st.lists(st.lists(words, min_size=1, max_size=6), min_size=1, max_size=4), kept=st.integers(1, 9))
def test_texts_read_together_score_what_they_score_alone(family: str, calls: list[list[str]], kept: int) -> None:
    model = _language_model(family)
    texts = [text for call in calls for text in call]
    scorer = _scorer(model, texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_model_scorer, "MOST_STATES", kept)
        numbers = iter(range(len(texts)))
        found = [score for call in calls for score in _ask(scorer, [next(numbers) for _ in call])]
    assert found == pytest.approx([_log_prob(model, text) for text in texts], rel=1e-3, abs=1e-3)


def test_new_words_of_one_call_take_one_pass() -> None:
    texts = ["a ", "dog ", "a dog ", "dog a ", "a dog c "]
    scorer = _scorer(_language_model(), texts)
    _ask(scorer, [0, 1])
    _ask(scorer, [2, 3])
    before = scorer.passes
    _ask(scorer, [2, 3, 4])
    _ask(scorer, [0, 4])
    assert scorer.passes == before + 1
    assert scorer.has_read([("a", "dog", "c"), ()])
    assert not scorer.has_read([("a",), ("c",)])


@settings(deadline=None, max_examples=15)
@given(asked=st.lists(words, max_size=6), texts=st.lists(words, min_size=1, max_size=4, unique=True))
def test_whole_texts_have_the_probability_of_their_end_too(asked: list[str], texts: list[str]) -> None:
    model = _language_model()
    scorer = _scorer(model, asked)
    _ask(scorer, range(len(asked)))  # which may have read some of them already, or their beginnings
    before = scorer.passes
    found = scorer.log_probs(texts, eos_id=1)
    assert scorer.passes == before + 1
    assert [ids for ids, _ in found] == [[*ids, 1] for ids in _tokenize(texts)]
    assert [len(log_probs) for _, log_probs in found] == [len(ids) for ids, _ in found]
    assert [sum(log_probs) for _, log_probs in found] == pytest.approx(
        [_log_prob(model, text, 1) for text in texts], rel=1e-3
    )
