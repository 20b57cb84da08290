"""Chunks hold the whole, none is too long, and cuts fall where nobody speaks."""

import itertools
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from asr_doge.audio import SAMPLE_RATE, Voice, synthesize
from asr_doge.inference.chunking import Chunk
from asr_doge.inference.cutting import cut_into_chunks

Waveform = NDArray[np.float32]


def silence(seconds: float) -> Waveform:
    return np.zeros(round(seconds * SAMPLE_RATE), dtype=np.float32)


def hiss(seconds: float) -> Waveform:
    """What a recorder that runs gives where nobody speaks: six steps of 16 bits to each side."""
    return np.random.default_rng(0).integers(-6, 7, round(seconds * SAMPLE_RATE)).astype(np.float32) / np.float32(32768)


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
    overlap = 0.0
    for chunk in chunks:
        start = round(chunk.start * SAMPLE_RATE)
        np.testing.assert_array_equal(chunk.samples, waveform[start : start + len(chunk.samples)])
        assert 0 < len(chunk.samples) <= max_seconds * SAMPLE_RATE
        assert chunk.overlap_before == overlap
        assert chunk.overlap == ((chunk.start, chunk.start + overlap) if overlap else None)
        assert reached - start == round(overlap * SAMPLE_RATE)
        reached = start + len(chunk.samples)
        overlap = chunk.overlap_after
        if chunk.speech:
            assert chunk.start <= chunk.speech[0] < chunk.speech[1] <= chunk.end + 0.032
    assert reached == len(waveform)
    assert not overlap


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
    at_once = list(cut_into_chunks([waveform], max_seconds, cut_at_pauses=True))
    assert_whole(at_once, waveform, max_seconds)
    cycle = itertools.cycle([*sizes, 8192])  # lest the blocks be as many as the samples
    edges = itertools.takewhile(lambda edge: edge < len(waveform), itertools.accumulate(cycle))
    blocks = np.split(waveform, list(edges))
    in_blocks = list(cut_into_chunks(blocks, max_seconds, cut_at_pauses=True))
    facts = [(chunk.start, chunk.end, chunk.speech, chunk.overlap_after, chunk.is_gap) for chunk in at_once]
    assert facts == [(chunk.start, chunk.end, chunk.speech, chunk.overlap_after, chunk.is_gap) for chunk in in_blocks]


def test_a_pause_ends_a_piece_and_a_long_one_is_a_gap() -> None:
    spoken = PARTS["speech"]
    waveform = np.concatenate([spoken, silence(1.4), spoken, silence(6.0), spoken])
    chunks = list(cut_into_chunks([waveform], cut_at_pauses=True))
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
    (chunk,) = cut_into_chunks([spoken], len(spoken) / SAMPLE_RATE, cut_at_pauses=True)
    assert len(chunk.samples) == len(spoken)
    (silent,) = cut_into_chunks([silence(7.0)], cut_at_pauses=True)
    assert (silent.speech, silent.is_gap) == (None, False)  # the only chunk: the model shall decide


def test_the_longer_a_piece_the_shorter_a_pause_will_do() -> None:
    waveform = np.concatenate([PARTS["breathless"], silence(0.4), PARTS["breathless"]])
    begin = len(PARTS["breathless"]) / SAMPLE_RATE
    first, second = cut_into_chunks([waveform], 8.0)
    assert begin <= first.end <= begin + 0.4
    assert first.end == second.start
    assert not first.overlap_after
    (whole,) = cut_into_chunks([waveform], 30.0)
    assert len(whole.samples) == len(waveform)


def test_where_nobody_pauses_pieces_overlap() -> None:
    chunks = list(cut_into_chunks([breathless(20.0)], 6.0))
    assert len(chunks) > 3
    assert all(chunk.overlap_after for chunk in chunks[:-1])
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


@given(st.integers(0, 40), st.sampled_from([1, 7, 4096]))
@settings(max_examples=20)
def test_what_fits_stays_whole_whatever_its_pauses(beyond: int, size: int) -> None:
    """And what is a sample longer is cut."""
    recording = np.concatenate([say("one two"), hiss(1.5), say("three"), hiss(1.2)])
    limit = len(recording) - beyond
    chunks = list(cut_into_chunks(np.split(recording, range(size, len(recording), 4096)), limit / SAMPLE_RATE))
    assert (len(chunks) == 1) == (beyond == 0)
    if beyond == 0:
        assert chunks[0].speech_bounds()[1] == pytest.approx(
            (len(recording) - 1.2 * SAMPLE_RATE) / SAMPLE_RATE, abs=0.3
        )
    np.testing.assert_array_equal(np.concatenate([chunk.samples for chunk in chunks]), recording)


@pytest.mark.parametrize("offset", [0.0, 0.3])
@pytest.mark.parametrize("size", [777, 4096])
@pytest.mark.parametrize(
    ("dead", "is_whole"), [((0.0, 0.9), True), ((1.1, 0.0), False), ((0.0, 1.1), False), ((5.0, 3.0), False)]
)
def test_dead_silence_is_cut_out_of_what_fits(
    dead: tuple[float, float], is_whole: bool, size: int, offset: float
) -> None:
    """As a track that starts late, or a recorder that was off, leaves it."""
    recording = np.concatenate([silence(dead[0]), say("one two"), silence(dead[1]), say("three")]) + np.float32(offset)
    chunks = list(cut_into_chunks(np.split(recording, range(size, len(recording), size))))
    assert (len(chunks) == 1) == is_whole
    assert_whole(chunks, recording, 30.0)
    spoken = [chunk for chunk in chunks if not chunk.is_gap]
    assert max(len(chunk.samples) for chunk in spoken) < (len(recording) + 1 if is_whole else 2.5 * SAMPLE_RATE)


@pytest.mark.parametrize(("samples", "is_whole"), [(14400, True), (16000, False)])
def test_a_second_of_dead_silence_is_found_wherever_it_lies(samples: int, is_whole: bool) -> None:
    """A second is 31.25 frames of the detector, so 30 or 31 whole ones lie within it."""
    sound = np.random.default_rng(0).uniform(-0.1, 0.1, 4096).astype(np.float32)
    for shift in (0, 1, 127, 128, 129, 255, 256, 300, 383, 384, 385, 511):
        recording = np.concatenate([sound[shift:], np.zeros(samples, dtype=np.float32), sound])
        assert next(chunk.is_uncut for chunk in cut_into_chunks([recording])) == is_whole


def test_a_recording_without_any_sound_stays_whole() -> None:
    assert [chunk.is_uncut for chunk in cut_into_chunks([silence(6)])] == [True]


def test_nothing_is_no_piece() -> None:
    assert (
        list(cut_into_chunks([]))
        == list(cut_into_chunks([silence(0)]))
        == list(cut_into_chunks([], cut_at_pauses=True))
        == []
    )
