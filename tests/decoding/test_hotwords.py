"""Hotwords are favoured where they are nearly heard, and nowhere else."""

from itertools import combinations, groupby, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from asr_doge.decoding.hotwords import HotwordBias, SpottedHotword, insert_hotwords, read_hotwords, spot_hotwords
from asr_doge.errors import ConfigError
from asr_doge.models import LoadedModel


def posteriors(path: str, **second: float) -> NDArray[np.float32]:
    """Sure of one character a frame, `_` for blank, but for each of `second` that share of every frame instead."""
    rows = np.full((len(path), 128), 1e-4, dtype=np.float32)
    rows[np.arange(len(path)), [0 if character == "_" else ord(character) for character in path]] = 0.9
    for letter, share in second.items():
        rows[:, ord(letter)] = np.maximum(rows[:, ord(letter)], share)
    return np.log(rows)


def spotted(loaded: LoadedModel, path: str, words: list[str], weight: float = 1.0, **second: float) -> list[str]:
    found = spot_hotwords(loaded.model.encoder, posteriors(path, **second), words, weight)
    return [word.text for word in found]


def test_what_is_written_is_heard_and_what_is_not_is_not(assembled: LoadedModel) -> None:
    path = "__one_ _two_ _thre_e__"
    assert spotted(assembled, path, ["two", "seven", "threes"]) == ["two"]
    assert spotted(assembled, path, ["one two", "three"]) == ["one two", "three"]
    assert spotted(assembled, path, ["wo", "hree", "e"]) == []  # words are whole


def test_nearly_heard_is_heard_by_its_weight(assembled: LoadedModel) -> None:
    """A `k` where the best path has `c`, nine times less likely."""
    path = "__cal_l_ _carl__"
    assert spotted(assembled, path, ["karl"], 0.0, k=0.1) == []
    assert spotted(assembled, path, ["karl"], 1.0, k=0.1) == ["karl"]
    assert spotted(assembled, path, ["karl"], 1.0) == []  # e to the ninth times less likely


def test_the_surer_of_two_that_overlap_is_taken(assembled: LoadedModel) -> None:
    assert spotted(assembled, "__cal_l_ _carl__", ["karl", "carl"], 1.0, k=0.1) == ["carl"]


def brute_force_gain(rows: NDArray[np.float64], text: str, weight: float) -> float:
    """The most that a word can gain: all paths of all stretches of frames, one by one.

    Args:
        rows: `[T, 4]`, log-posteriors of blank, space, a and b.
    """
    word = [" ab".index(letter) + 1 for letter in f" {text} "]
    relative = rows - rows.max(axis=1, keepdims=True)
    edge = np.array([[-np.inf, 0.0, -np.inf, -np.inf]])
    relative = np.concatenate([edge, relative, edge])
    best = -np.inf
    for start, end in combinations(range(len(relative) + 1), 2):
        for path in product(range(4), repeat=end - start):
            labels = [label for label, _ in groupby(path) if label]
            if labels == word and path[0] and path[-1]:
                best = max(best, relative[range(start, end), path].sum())
    return float(best + weight * len(text))


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.lists(st.sampled_from(["a", "b", "ab", "aa", "ba"]), min_size=1, unique=True))
def test_the_best_of_all_paths_of_all_words_is_found(assembled: LoadedModel, seed: int, words: list[str]) -> None:
    rows = np.log(np.random.default_rng(seed).dirichlet(np.ones(4), size=4))
    inputs = np.full((4, 128), -50.0, dtype=np.float32)
    inputs[:, [0, ord(" "), ord("a"), ord("b")]] = rows
    weight = 20.0  # so that any is heard
    found = spot_hotwords(assembled.model.encoder, inputs, words, weight)
    best = max(brute_force_gain(rows, word, weight) for word in words)
    assert max(word.gain for word in found) == pytest.approx(best, abs=1e-4)


def test_it_replaces_what_stands_there(assembled: LoadedModel) -> None:
    encoder = assembled.model.encoder
    inputs = posteriors("__cal_l_ _carl_ _now__", k=0.1)
    found = spot_hotwords(encoder, inputs, ["karl"], 1.0)
    assert insert_hotwords(encoder, inputs, found) == ("call karl now", [1])
    assert insert_hotwords(encoder, inputs, []) == ("call carl now", [])


def test_scores_rise_along_the_word_at_its_place_and_once(assembled: LoadedModel) -> None:
    tokenizer = assembled.processor.tokenizer

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    hotword = SpottedHotword("xylophone", 0, 9, 2.5)
    bias = HotwordBias(tokenizer, [hotword], ("the quick brown fox xylophone jumps over", [4]))
    later = ids("a xylophone")[len(ids("a")) :]
    before = ids("the quack brown fox")
    for done in range(len(later)):
        assert bias.bonuses([*before, *later[:done]])[later[done]] == 2.5
    assert bias.bonuses([*before, *later]) == {}
    assert bias.bonuses([*before, *later, *ids("a jumps")[len(ids("a")) :]]) == {}
    for elsewhere in ("", "the", "the quick brown", "the quick brown fox jumps", "the quick brown fox jumps over"):
        assert bias.bonuses(ids(elsewhere)) == {}
    assert later[0] in bias.bonuses(ids("quick brown fox"))  # of which the first word is missing
    first = HotwordBias(tokenizer, [hotword], ("xylophone", [0]))
    assert first.bonuses([])[ids("xylophone")[0]] == 2.5


def test_files_are_read_and_faults_named(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("# names\nKarl\n\n  New   York \nKarl\n")
    assert read_hotwords(path) == ["Karl", "New York"]
    path.write_text("# nothing\n")
    with pytest.raises(ConfigError, match="no words"):
        read_hotwords(path)
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_hotwords(path)
    with pytest.raises(ConfigError, match="missing"):
        read_hotwords(tmp_path / "missing.txt")
