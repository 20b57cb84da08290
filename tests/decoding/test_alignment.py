"""Words stand where their letters are, within the clip and in order, whatever the text."""

from collections.abc import Sequence
from itertools import groupby, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from asr_doge.decoding.alignment import UNALIGNED_LOG_POSTERIOR, AlignedWord, _best_path, align_words
from asr_doge.models import LoadedModel

RATE = 16_000
FRAME = RATE // 50


def posteriors(path: str) -> NDArray[np.float32]:
    """Sure of one character a frame; `_` is blank."""
    rows = np.full((len(path), 128), 0.001, dtype=np.float32)
    rows[np.arange(len(path)), [0 if character == "_" else ord(character) for character in path]] = 0.9
    return np.log(rows)


def clip(path: str, silent: str = "_ ") -> NDArray[np.float32]:
    """Noise, but silence at the frames of `silent` characters."""
    noise = np.random.default_rng(0).standard_normal(len(path) * FRAME) * 0.1
    loud = np.repeat([character not in silent for character in path], FRAME)
    return (noise * loud).astype(np.float32)


def align(loaded: LoadedModel, path: str, text: str, waveform: NDArray[np.float32] | None = None) -> list[AlignedWord]:
    sound = clip(path) if waveform is None else waveform
    return align_words(loaded.model.encoder, posteriors(path), text.split(), sound, RATE)


def test_words_begin_and_end_at_the_pauses(assembled: LoadedModel) -> None:
    one, two = align(assembled, "____oonnee____ _____twwoo____", "one two")
    assert (one.start, one.end) == pytest.approx((0.08, 0.20))
    assert (two.start, two.end) == pytest.approx((0.40, 0.50))
    assert one.log_posterior == pytest.approx(np.log(0.9 / posteriors_total()), abs=0.2)


def posteriors_total() -> float:
    """What a row of `posteriors` sums to."""
    return 0.9 + 127 * 0.001


@pytest.mark.parametrize("path", ["_____________six____", "six_________________"])
def test_letters_marked_outside_their_word_do_not_move_it(assembled: LoadedModel, path: str) -> None:
    """A CTC head may write a word when it is over, or as soon as it begins."""
    sound = clip("____spoken__________")
    (six,) = align(assembled, path, "six", sound)
    assert (six.start, six.end) == pytest.approx((0.08, 0.20))


@pytest.mark.parametrize(
    "path",
    [
        "____o___ne__t___wo___s_ix___",  # in the pause after the word
        "____o_______n_e_t______wos_ix",  # in the next word, and nearer to the pause after that
    ],
)
def test_words_meet_at_every_pause_though_letters_are_elsewhere(assembled: LoadedModel, path: str) -> None:
    words = align(assembled, path, "one two six", clip("____spoke_____the_____words__"))
    times = [time for word in words for time in (word.start, word.end)]
    assert times == pytest.approx([0.08, 0.18, 0.28, 0.34, 0.44, 0.54])


def test_a_pause_within_a_word_is_left_there(assembled: LoadedModel) -> None:
    path = "__ssss__iiixxx nniinnee__"
    six, nine = align(assembled, path, "six nine", clip(path, silent="_"))
    assert (six.end, nine.start) == pytest.approx((0.28, 0.28), abs=0.03)


def test_without_a_pause_words_meet_between_their_letters(assembled: LoadedModel) -> None:
    path = "__oonnee tttwwoo__"
    one, two = align(assembled, path, "one two", clip(path, silent=""))
    assert one.end <= two.start
    assert 0.14 <= one.end <= 0.20
    assert 0.10 <= two.start <= 0.20


def test_another_text_than_the_paths_is_aligned_as_well_as_it_goes(assembled: LoadedModel) -> None:
    right = align(assembled, "____oonnee____ _____twwoo____", "one two")
    wrong = align(assembled, "____oonnee____ _____twwoo____", "ore too")
    assert [word.start for word in wrong] == pytest.approx([word.start for word in right], abs=0.1)
    for sure, unsure in zip(right, wrong, strict=True):
        assert sure.log_posterior is not None
        assert unsure.log_posterior is not None
        assert unsure.log_posterior < sure.log_posterior - 1


def test_case_does_not_matter(assembled: LoadedModel) -> None:
    path = "____oonnee____ _____twwoo____"
    assert align(assembled, path, "ONE Two") == align(assembled, path, "one two")
    assert align(assembled, path.upper(), "one two") == align(assembled, path, "one two")


def test_words_that_the_head_cannot_write_take_no_time(assembled: LoadedModel) -> None:
    one, foreign, two = align(assembled, "____oonnee____ _____twwoo____", "one 一二 two")
    assert foreign == AlignedWord(one.end, one.end, None)
    assert two.start > one.end


def test_a_text_too_long_for_its_clip_is_spread_over_it(assembled: LoadedModel) -> None:
    words = align(assembled, "_on_", "many more letters than frames")
    assert words[0].start == 0.0
    assert words[-1].end == pytest.approx(0.08)
    assert all(word.log_posterior == UNALIGNED_LOG_POSTERIOR for word in words)


@given(
    path=st.text(alphabet="_ abc", min_size=1, max_size=40),
    words=st.lists(st.text(alphabet="abcé一", min_size=1, max_size=4), min_size=1, max_size=6),
)
def test_words_are_in_order_and_within_the_clip(assembled: LoadedModel, path: str, words: list[str]) -> None:
    aligned = align(assembled, path, " ".join(words), clip(path))
    assert len(aligned) == len(words)
    times = [time for word in aligned for time in (word.start, word.end)]
    assert times == sorted(times)
    assert times[0] >= 0.0
    assert times[-1] <= len(path) / 50 + 1e-6


@given(st.integers(1, 6), st.lists(st.integers(1, 2), max_size=4), st.integers(0, 2**32 - 1))
def test_the_path_is_the_best_of_all_that_spell_the_text(frames: int, text: list[int], seed: int) -> None:
    """Every path is tried; a path spells what is left without repeats and blanks."""
    log_posteriors = np.random.default_rng(seed).normal(0, 3, (frames, 3)).astype(np.float32)
    emissions = log_posteriors[:, text]
    path = _best_path(emissions, log_posteriors[:, 0])
    spelling = [labels for labels in product(range(3), repeat=frames) if _spelled(labels) == text]
    if not spelling:
        assert path is None
        return
    assert path is not None
    labels = [0 if place < 0 else text[place] for place in path]
    assert _spelled(labels) == text
    assert sorted(path[path >= 0]) == path[path >= 0].tolist()
    scores = [sum(row[label] for row, label in zip(log_posteriors, one, strict=True)) for one in [labels, *spelling]]
    assert scores[0] == pytest.approx(max(scores[1:]), rel=1e-5)


def _spelled(labels: Sequence[int]) -> list[int]:
    return [label for label, _ in groupby(labels) if label]
