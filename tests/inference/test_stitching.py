"""Of two neighbours that overlap, each word that was spoken is kept, and kept once."""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr_doge.inference.results import Alternative, Segment, Word
from asr_doge.inference.stitching import ChunkTranscript, Span, stitch

Timed = tuple[str, float, float]
"""A word, its start and its end."""


def said(
    words: Sequence[Timed], start: float, end: float, overlap: Span | None, *, timed: bool = True
) -> ChunkTranscript:
    """What a chunk from `start` to `end` gives."""
    text = " ".join(word for word, _, _ in words)
    return ChunkTranscript(Segment(text, start, end), tuple((a, b) for _, a, b in words) if timed else (), overlap)


def joined(*parts: ChunkTranscript) -> list[str]:
    return " ".join(segment.text for segment in stitch(parts)).split()


def evenly(text: str, start: float, end: float) -> list[Timed]:
    """Words of a text that take as long as they have letters, as the mean speaker says them."""
    words = text.split()
    letters = (end - start) / (len(text) or 1)
    places = [text_before(words, index) for index in range(len(words))]
    return [
        (word, start + letters * place, start + letters * (place + len(word)))
        for word, place in zip(words, places, strict=True)
    ]


def text_before(words: list[str], index: int) -> int:
    return sum(len(word) + 1 for word in words[:index])


def heard_from(truth: Sequence[Timed], start: float, end: float, shift: Sequence[float]) -> list[Timed]:
    """What a faultless model hears of a chunk, its times a little off; of a word that is cut through, a fragment."""
    words = []
    for (word, begin, stop), off in zip(truth, shift, strict=True):
        inside = min(stop, end) - max(begin, start)
        if inside >= stop - begin - 1e-9:
            words.append((word, begin + off, stop + off))
        elif inside > 0.05:
            words.append((f"{word[0]}~", max(begin, start), min(stop, end)))
    return words


def spoken(chance: random.Random) -> list[Timed]:
    """6 s of words of 0.15 to 0.8 s, of a few kinds so that they repeat, with short pauses or none."""
    words, moment = [], 0.0
    while moment < 6:
        length = chance.uniform(0.15, 0.8)
        words.append((chance.choice(("the", "seven", "on", "dog")), moment, moment + length))
        moment += length + chance.choice((0.0, 0.05, 0.3))
    return words


@given(st.integers(0, 2**32))
def test_with_times_every_word_is_kept_and_kept_once(seed: int) -> None:
    """The truth is made first; both chunks hear it, at a cut that may go through words, their times a little off."""
    chance = random.Random(seed)
    truth, cut = spoken(chance), chance.uniform(2.5, 5.5)
    first, second = ([chance.uniform(-0.03, 0.03) for _ in truth] for _ in range(2))
    parts = (
        said(heard_from(truth, 0.0, cut, first), 0.0, cut, None),
        said(heard_from(truth, cut - 1.5, truth[-1][2], second), cut - 1.5, truth[-1][2], (cut - 1.5, cut)),
    )
    assert joined(*parts) == [word for word, _, _ in truth]


def test_a_short_word_that_stands_in_both_by_chance_drops_nothing() -> None:
    """Seven words were dropped."""
    first = said(evenly("he had walked on to the", 0.0, 6.0), 0.0, 6.0, None, timed=False)
    second = said(evenly("mat and then we saw the dog", 4.5, 12.0), 4.5, 12.0, (4.5, 6.0), timed=False)
    assert joined(first, second) == first.segment.text.split() + second.segment.text.split()


def test_one_chance_word_at_the_same_time_is_not_most_of_what_was_heard() -> None:
    first = said([("a", 0, 1), ("b", 4.5, 4.8), ("the", 4.9, 5.1), ("c", 5.2, 5.5), ("d", 5.6, 5.9)], 0, 6, None)
    second = said(
        [("e", 4.5, 4.8), ("the", 4.9, 5.1), ("f", 5.2, 5.5), ("g", 5.6, 5.9), ("h", 7, 8)], 4.5, 9, (4.5, 6.0)
    )
    assert joined(first, second) == ["a", "b", "the", "f", "g", "h"]  # each on its side of the middle


@pytest.mark.parametrize(
    ("first", "second", "whole"),
    [
        ("one two three four five", "four five six seven", "one two three four five six seven"),
        ("one two three four sev", "four seven eight nine", "one two three four seven eight nine"),  # cut within a word
        ("one two three four five", "ree four five six seven", "one two three four five six seven"),  # begun within one
        ("", "one two", "one two"),
        ("one two", "", "one two"),
    ],
)
def test_without_times_they_are_estimated(first: str, second: str, whole: str) -> None:
    """An even pace of about 15 letters a second, as people speak."""
    cut = len(first) / 15 if first else 4.0
    start = cut - len("four five") / 15
    parts = (
        said(evenly(first, 0.0, cut), 0.0, cut, None, timed=False),
        said(
            evenly(second, start, start + len(second) / 15),
            start,
            start + len(second) / 15 + 0.1,
            (start, cut),
            timed=False,
        ),
    )
    assert joined(*parts) == whole.split()
    assert all(segment.text and segment.start <= segment.end for segment in stitch(parts))


@pytest.mark.parametrize("word", ["seven", "no"])
@given(st.integers(0, 2**32))
def test_a_word_that_is_said_again_and_again_is_not_lost_without_times(word: str, seed: int) -> None:
    """At an even pace; both chunks break off, the first after a word and the second within one.

    Whatever the second hears of that one, no more than the words within the overlap are twice.
    """
    chance = random.Random(seed)
    truth = evenly(" ".join([word] * 20), 0.0, 20 * (len(word) + 1) / 15)
    cut = truth[chance.randrange(12, 17)][2]
    start = cut - chance.uniform(1.2, 1.6)
    nothing = [0.0] * len(truth)
    parts = (
        said(heard_from(truth, 0.0, cut, nothing), 0.0, cut, None, timed=False),
        said(heard_from(truth, start, truth[-1][2], nothing), start, truth[-1][2], (start, cut), timed=False),
    )
    assert [heard for heard in joined(*parts) if heard == word] == [word] * 20


def test_words_that_only_one_of_two_heard_are_kept() -> None:
    """The second misses its first second; the first its last."""
    first = said([("one", 0, 1), ("two", 4.6, 4.9), ("three", 5.3, 5.9)], 0, 6, None)
    second = said([("four", 6.1, 6.5)], 4.5, 9, (4.5, 6.0))
    assert joined(first, second) == ["one", "two", "three", "four"]
    first = said([("one", 0, 1)], 0, 6, None)
    second = said([("two", 4.6, 4.9), ("three", 5.3, 5.9)], 4.5, 9, (4.5, 6.0))
    assert joined(first, second) == ["one", "two", "three"]


def test_beside_a_segment_without_text_nothing_moves() -> None:
    words = ChunkTranscript(Segment("one two", 4.5, 9.0), overlap=(4.5, 6.0))
    nothing = ChunkTranscript(Segment("", 0.0, 6.0))
    assert stitch([nothing, words]) == [words.segment]
    assert stitch([words, replace(nothing, overlap=(7.5, 9.0))]) == [words.segment]


def test_without_overlap_nothing_is_dropped() -> None:
    segments = [Segment("one two", 0.0, 1.0), Segment("two three", 1.0, 2.0), Segment("", 2.0, 3.0)]
    assert stitch([ChunkTranscript(segment) for segment in segments]) == segments[:2]


def test_word_times_go_with_their_words() -> None:
    def evenly_timed(text: str, start: float, overlap: Span | None) -> ChunkTranscript:
        words = tuple(Word(word, start + i / 2, start + i / 2 + 0.5) for i, word in enumerate(text.split()))
        segment = Segment(text, start, words[-1].end, words)
        return ChunkTranscript(segment, tuple((word.start, word.end) for word in words), overlap)

    segments = stitch([evenly_timed("one two three fo", 0.0, None), evenly_timed("ee three four", 0.5, (0.5, 2.0))])
    assert [segment.text for segment in segments] == ["one two three", "four"]
    assert [[word.text for word in segment.words] for segment in segments] == [["one", "two", "three"], ["four"]]
    assert [(segment.start, segment.end) for segment in segments] == [(0.0, 1.5), (1.5, 2.0)]


def test_words_of_neighbours_do_not_overlap() -> None:
    first, second = (Word("one", 0.0, 1.0), Word("two", 4.6, 5.0)), (Word("three", 4.9, 6.5), Word("four", 6.5, 9.0))
    segments = stitch(
        [
            ChunkTranscript(Segment("one two", 0.0, 6.0, first), tuple((word.start, word.end) for word in first)),
            ChunkTranscript(
                Segment("three four", 4.5, 9.0, second), tuple((word.start, word.end) for word in second), (4.5, 6.0)
            ),
        ]
    )
    words = [word for segment in segments for word in segment.words]
    assert [(word.start, word.end) for word in words] == [(0.0, 1.0), (4.6, 5.0), (5.0, 6.5), (6.5, 9.0)]


def timed(words: Sequence[Timed], start: float, end: float, overlap: Span | None) -> ChunkTranscript:
    """`said`, with times of its words asked for."""
    part = said(words, start, end, overlap)
    return replace(part, segment=replace(part.segment, words=tuple(Word(*word) for word in words)))


def test_a_word_that_was_over_before_the_one_before_it_ends_gets_a_share_of_its_time() -> None:
    """The neighbours time the word that both have differently, by less than `SAME_TIME`."""
    first = timed([("one", 0.0, 1.0), ("seven", 5.0, 5.6)], 0.0, 6.0, None)
    second = timed([("seven", 4.75, 5.1), ("a", 5.1, 5.2), ("b", 5.2, 5.5), ("dog", 5.5, 6.4)], 4.5, 7.0, (4.5, 6.0))
    before, after = stitch([first, second])
    times = [(word.text, round(word.start, 9), round(word.end, 9)) for word in (*before.words, *after.words)]
    assert times == [("one", 0.0, 1.0), ("seven", 5.0, 5.2), ("a", 5.2, 5.4), ("b", 5.4, 5.6), ("dog", 5.6, 6.4)]
    assert (before.end, after.start) == (before.words[-1].end, after.words[0].start)


@given(st.integers(0, 2**32))
def test_every_word_lasts_and_ends_before_the_next_begins(seed: int) -> None:
    """However far apart the two alignments are, of words that both make last."""
    chance = random.Random(seed)
    truth, cut = spoken(chance), chance.uniform(2.5, 5.5)

    def shifted(words: list[Timed]) -> list[Timed]:
        edges = sorted(chance.uniform(-0.35, 0.35) + edge for _, *span in words for edge in span)
        return [(word, edges[2 * n], edges[2 * n + 1]) for n, (word, *_) in enumerate(words)]

    still = [0.0] * len(truth)
    parts = (
        timed(shifted(heard_from(truth, 0.0, cut, still)), 0.0, cut, None),
        timed(shifted(heard_from(truth, cut - 1.5, truth[-1][2], still)), cut - 1.5, truth[-1][2], (cut - 1.5, cut)),
    )
    words = [word for segment in stitch(parts) for word in segment.words]
    assert all(word.start < word.end for word in words)
    assert all(word.end <= later.start for word, later in pairwise(words))


def test_a_segment_that_lost_words_has_no_alternatives() -> None:
    whole, cut = (Alternative("one two three", -1.0),), (Alternative("three four", -2.0),)
    first = ChunkTranscript(Segment("one two three", 0.0, 2.0, (), whole), ((0.0, 0.4), (0.6, 1.0), (1.5, 1.9)))
    second = ChunkTranscript(Segment("three four", 1.0, 4.0, (), cut), ((1.5, 1.9), (3.0, 3.4)), (1.0, 2.0))
    assert [segment.alternatives for segment in stitch([first, second])] == [whole, ()]


def test_a_short_segment_beside_a_joint_does_not_end_before_it_begins() -> None:
    first, second = Segment("one two", 0.0, 6.0), Segment("three", 4.5, 4.75)
    assert all(
        part.start <= part.end for part in stitch([ChunkTranscript(first), ChunkTranscript(second, overlap=(4.5, 6.0))])
    )


@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=12), st.booleans())
def test_stitching_invents_nothing(first: list[str], second: list[str], timed: bool) -> None:
    parts = (
        said(evenly(" ".join(first), 0, 6), 0, 6, None, timed=timed),
        said(evenly(" ".join(second), 4.5, 10), 4.5, 10, (4.5, 6.0), timed=timed),
    )
    words = joined(*parts)
    assert any(
        words == first[:kept] + second[len(second) - len(words) + kept :]
        for kept in range(min(len(first), len(words)) + 1)
        if len(words) - kept <= len(second)
    )
