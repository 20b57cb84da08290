"""Chunks hold the whole, none is too long, and cuts fall where nobody speaks."""

import itertools
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from asr_doge.audio import SAMPLE_RATE, Voice, synthesize
from asr_doge.inference.results import Alternative, Segment, Word
from asr_doge.inference.segmentation import Chunk, cut_into_chunks, stitch

Waveform = NDArray[np.float32]


def silence(seconds: float) -> Waveform:
    return np.zeros(round(seconds * SAMPLE_RATE), dtype=np.float32)


def noise(seconds: float) -> Waveform:
    return np.random.default_rng(0).normal(0, 0.02, round(seconds * SAMPLE_RATE)).astype(np.float32)


def say(text: str) -> Waveform:
    """Without the silence around it."""
    waveform = synthesize(text, Voice(words_per_minute=160))
    loud = np.flatnonzero(np.abs(waveform) > 0.01)
    return waveform[loud[0] : loud[-1] + 1]


def breathless(seconds: float) -> Waveform:
    """Speech without any pause."""
    word = say("seven")
    return np.tile(word, round(seconds * SAMPLE_RATE / len(word)))


def assert_whole(chunks: list[Chunk], waveform: Waveform, max_seconds: float) -> None:
    """Chunks are where they say, without gaps, and overlap only where they say so."""
    reached = 0
    overlaps = False
    for chunk in chunks:
        start = round(chunk.start * SAMPLE_RATE)
        np.testing.assert_array_equal(chunk.samples, waveform[start : start + len(chunk.samples)])
        assert 0 < len(chunk.samples) <= max_seconds * SAMPLE_RATE
        assert start < reached if overlaps else start == reached
        reached = start + len(chunk.samples)
        overlaps = chunk.overlaps_next
        if chunk.speech:
            assert chunk.start <= chunk.speech[0] < chunk.speech[1] <= chunk.end + 0.032
    assert reached == len(waveform)
    assert not overlaps


PARTS = {
    "speech": say("nine one one, four five six seven"),
    "breathless": breathless(6.0),
    "word": say("two"),
    "silence": silence(2.4),
    "blink": silence(0.2),
    "noise": noise(3.0),
}


@settings(max_examples=12)
@given(
    st.lists(st.sampled_from(sorted(PARTS)), min_size=1, max_size=4),
    st.floats(1.5, 9.0),
    st.lists(st.integers(1, 90_000), min_size=1, max_size=5),
)
def test_cuts_depend_on_the_recording_alone(names: list[str], max_seconds: float, sizes: list[int]) -> None:
    """Whatever it holds, and however it arrives."""
    waveform = np.concatenate([PARTS[name] for name in names])
    at_once = list(cut_into_chunks([waveform], max_seconds))
    assert_whole(at_once, waveform, max_seconds)
    edges = list(itertools.accumulate(itertools.islice(itertools.cycle(sizes), 1 + len(waveform) // min(sizes))))
    blocks = np.split(waveform, [edge for edge in edges if edge < len(waveform)])
    in_blocks = list(cut_into_chunks(blocks, max_seconds))
    facts = [(chunk.start, chunk.end, chunk.speech, chunk.overlaps_next, chunk.is_gap) for chunk in at_once]
    assert facts == [(chunk.start, chunk.end, chunk.speech, chunk.overlaps_next, chunk.is_gap) for chunk in in_blocks]


def test_a_pause_ends_a_piece_and_a_long_one_is_a_gap() -> None:
    spoken = PARTS["speech"]
    waveform = np.concatenate([spoken, silence(1.4), spoken, silence(6.0), spoken])
    chunks = list(cut_into_chunks([waveform]))
    gaps = [chunk for chunk in chunks if chunk.is_gap]
    assert sum(chunk.end - chunk.start for chunk in gaps) == pytest.approx(5.5, abs=1.5)
    assert all(chunk.speech is None for chunk in gaps)
    seconds = len(spoken) / SAMPLE_RATE
    begins = [0.0, seconds + 1.4, 2 * seconds + 7.4]
    for chunk, begin in zip([chunk for chunk in chunks if not chunk.is_gap], begins, strict=True):
        assert chunk.speech is not None
        assert chunk.speech[0] == pytest.approx(begin, abs=0.15)
        assert chunk.speech[1] == pytest.approx(begin + seconds, abs=0.3)
        assert chunk.start <= begin
        assert chunk.end >= begin + seconds


def test_what_fits_and_has_no_pause_is_one_piece() -> None:
    spoken = PARTS["speech"]
    (chunk,) = cut_into_chunks([spoken], len(spoken) / SAMPLE_RATE)
    assert len(chunk.samples) == len(spoken)
    (silent,) = cut_into_chunks([silence(7.0)])
    assert (silent.speech, silent.is_gap) == (None, False)  # the only chunk: the model shall decide


def test_the_longer_a_piece_the_shorter_a_pause_will_do() -> None:
    waveform = np.concatenate([PARTS["breathless"], silence(0.4), PARTS["breathless"]])
    begin = len(PARTS["breathless"]) / SAMPLE_RATE
    first, second = cut_into_chunks([waveform], 8.0)
    assert begin <= first.end <= begin + 0.4
    assert first.end == second.start
    assert not first.overlaps_next
    (whole,) = cut_into_chunks([waveform], 30.0)
    assert len(whole.samples) == len(waveform)


def test_where_nobody_pauses_pieces_overlap() -> None:
    chunks = list(cut_into_chunks([breathless(20.0)], 6.0))
    assert len(chunks) > 3
    assert all(chunk.overlaps_next for chunk in chunks[:-1])
    for chunk, following in itertools.pairwise(chunks):
        assert chunk.end - following.start == pytest.approx(1.5, abs=0.05)


def test_an_hour_is_cut_in_the_memory_of_a_piece() -> None:
    block = silence(4.0)

    def blocks() -> Iterator[Waveform]:
        yield from itertools.repeat(block, 900)

    tracemalloc.start()
    seconds = sum(len(chunk.samples) for chunk in cut_into_chunks(blocks())) / SAMPLE_RATE
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds == 3600
    assert peak < 16 * 2**20  # an hour has 220 MiB


# stitching


def segment(text: str, start: float, end: float) -> Segment:
    return Segment(text, start, end)


@pytest.mark.parametrize(
    ("first", "second", "joined"),
    [
        ("one two three four", "three four five", "one two three four five"),
        ("one two three four sev", "four seven eight", "one two three four seven eight"),  # cut within a word
        ("one two three four", "ree four five", "one two three four five"),  # begun within a word
        ("one two", "three four", "one two three four"),  # nothing in common
        ("seven seven seven", "seven seven eight", "seven seven seven eight"),
        ("one two three", "two three", "one two three"),
        ("", "one two", "one two"),
        ("one two", "", "one two"),
    ],
)
def test_words_that_neighbours_share_are_kept_once(first: str, second: str, joined: str) -> None:
    segments = stitch([segment(first, 0.0, 6.0), segment(second, 4.5, 9.0)], [True, False])
    assert " ".join(segment.text for segment in segments) == joined
    assert all(segment.text for segment in segments)
    if len(segments) == 2:
        assert segments[0].end == segments[1].start == 5.25


def test_beside_a_segment_without_text_nothing_moves() -> None:
    said, nothing = segment("one two", 4.5, 9.0), segment("", 0.0, 6.0)
    assert stitch([nothing, said], [True, False]) == [said]
    assert stitch([said, replace(nothing, start=7.5)], [True, False]) == [said]


def test_without_overlap_nothing_is_dropped() -> None:
    segments = [segment("one two", 0.0, 1.0), segment("two three", 1.0, 2.0), segment("", 2.0, 3.0)]
    assert stitch(segments, [False, False, False]) == segments[:2]


def test_word_times_go_with_their_words() -> None:
    def timed(text: str, start: float) -> Segment:
        words = tuple(Word(word, start + i, start + i + 1) for i, word in enumerate(text.split()))
        return Segment(text, start, words[-1].end, words)

    joined = stitch([timed("one two three fo", 0.0), timed("ee three four", 2.0)], [True, False])
    assert [segment.text for segment in joined] == ["one two three", "four"]
    assert [[word.text for word in segment.words] for segment in joined] == [["one", "two", "three"], ["four"]]

    assert [(segment.start, segment.end) for segment in joined] == [(0.0, 3.0), (4.0, 5.0)]


def test_words_of_neighbours_that_share_none_do_not_overlap() -> None:
    first = Segment("one two", 0.0, 6.0, (Word("one", 0.0, 1.0), Word("two", 4.0, 6.0)))
    second = Segment("three four", 4.5, 9.0, (Word("three", 4.5, 5.5), Word("four", 5.5, 9.0)))
    words = [word for segment in stitch([first, second], [True, False]) for word in segment.words]
    assert [(word.start, word.end) for word in words] == [(0.0, 1.0), (4.0, 6.0), (6.0, 6.0), (6.0, 9.0)]


def test_a_segment_that_lost_words_has_no_alternatives() -> None:
    whole, cut = (Alternative("one two three", -1.0),), (Alternative("three four", -2.0),)
    first, second = Segment("one two three", 0.0, 6.0, (), whole), Segment("three four", 4.5, 9.0, (), cut)
    assert [segment.alternatives for segment in stitch([first, second], [True, False])] == [whole, ()]


def test_a_short_segment_beside_a_joint_does_not_end_before_it_begins() -> None:
    first, second = segment("one two", 0.0, 6.0), segment("three", 4.5, 4.75)
    assert all(part.start <= part.end for part in stitch([first, second], [True, False]))


@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=12), st.booleans())
def test_stitching_invents_nothing(first: list[str], second: list[str], overlaps: bool) -> None:
    joined = stitch([segment(" ".join(first), 0, 2), segment(" ".join(second), 1, 3)], [overlaps, False])
    words = " ".join(segment.text for segment in joined).split()
    assert len(words) >= max(len(first), len(second)) - 8
    assert any(
        words == first[:kept] + second[len(second) - len(words) + kept :]
        for kept in range(min(len(first), len(words)) + 1)
        if len(words) - kept <= len(second)
    )
