"""A stream says early what its recording says that is cut at pauses, and takes nothing back, for bounded work."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from asr_doge.audio import SAMPLE_RATE, Voice, synthesize
from asr_doge.decoding import DecodingConfig
from asr_doge.decoding.recognition import Recognition
from asr_doge.inference.chunking import Chunk
from asr_doge.inference.cutting import cut_into_chunks
from asr_doge.inference.results import Segment
from asr_doge.inference.stream import MOST_WORK, StreamTranscriber, StreamUpdate, stream
from asr_doge.inference.transcription import Transcriber, load
from tests.inference.conftest import UNGUARDED

Waveform = NDArray[np.float32]
BLOCK = SAMPLE_RATE // 10
PAUSE = np.zeros(round(1.5 * SAMPLE_RATE), dtype=np.float32)


@pytest.fixture(scope="module")
def nano() -> Transcriber:
    return load("nano", device="cpu", decoding=DecodingConfig(cut_at_pauses=True))


@pytest.fixture(scope="module")
def cutting(transcriber: Transcriber) -> Transcriber:
    """Cuts files as streams are cut."""
    return Transcriber(transcriber.loaded, decoding=replace(UNGUARDED, cut_at_pauses=True))


@pytest.fixture(scope="module")
def speech() -> Waveform:
    """Two sentences and the pauses after them."""
    said = [synthesize(text, Voice(words_per_minute=130)) for text in ("one two three four", "nine eight seven")]
    return np.concatenate([said[0], PAUSE, said[1], PAUSE])


def blocks_of(waveform: Waveform, size: int = BLOCK) -> list[Waveform]:
    return np.split(waveform, range(size, len(waveform), size))


def finished(updates: Sequence[StreamUpdate]) -> list[Segment]:
    return [segment for update in updates for segment in update.finished]


def test_the_finished_text_is_the_files(nano: Transcriber, speech: Waveform) -> None:
    live = StreamTranscriber(nano)
    for block in blocks_of(speech):
        live.feed(block)
    live.finish()
    whole = nano.transcribe(speech)
    assert live.transcription().segments == whole.segments
    assert len(whole.segments) == 2
    assert (live.transcription().text, live.transcription().duration) == (whole.text, whole.duration)


def test_chunks_that_were_cut_elsewhere_give_the_same(nano: Transcriber, speech: Waveform) -> None:
    fed, taken = StreamTranscriber(nano), StreamTranscriber(nano)
    fed.feed(speech, hypothesis=False)
    fed.finish()
    updates = [
        taken.feed_chunk(round(chunk.end * SAMPLE_RATE), chunk) for chunk in cut_into_chunks([speech], 30.0, True)
    ]
    updates.append(taken.feed_chunk(len(speech), None))
    taken.finish()
    assert taken.transcription() == fed.transcription()
    assert tuple(finished([update for update in updates if update is not None])) == fed.transcription().segments


@settings(max_examples=3)
@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=4))
def test_however_it_arrives(cutting: Transcriber, speech: Waveform, sizes: list[int]) -> None:
    sizes = [*sizes, 12_345] * (1 + len(speech) // sum([*sizes, 12_345]))
    updates = list(stream(np.split(speech, np.cumsum(sizes)[np.cumsum(sizes) < len(speech)]), cutting))
    assert tuple(finished(updates)) == cutting.transcribe(speech).segments
    assert updates[-1].seconds == pytest.approx(len(speech) / SAMPLE_RATE)


def test_committed_words_stay_until_their_segment_ends(nano: Transcriber, speech: Waveform) -> None:
    committed: list[str] = []
    early = 0
    for update in stream(blocks_of(speech), nano):
        words = update.committed.split()
        if update.finished:
            committed = []
        assert words[: len(committed)] == committed
        early += len(words) - len(committed)
        committed = words
    assert early >= 4  # of seven words; else nothing is said before the end


def test_a_segment_is_finished_where_somebody_pauses(nano: Transcriber, speech: Waveform) -> None:
    updates = list(stream(blocks_of(speech), nano))
    first = next(update for update in updates if update.finished)
    (segment,) = first.finished
    assert segment.end < first.seconds < segment.end + 1.3
    assert first.seconds < len(speech) / SAMPLE_RATE - 2


def test_silence_is_nothing_to_work_on(nano: Transcriber, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = recognized_chunks(nano, monkeypatch)
    updates = list(stream(blocks_of(np.zeros(20 * SAMPLE_RATE, dtype=np.float32)), nano))
    assert len(updates) == 1
    assert (updates[0].finished, updates[0].committed, updates[0].tentative) == ((), "", "")
    assert len(chunks) <= 1


def test_where_nobody_pauses_the_text_is_the_files_for_bounded_work(
    cutting: Transcriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That makes the longest chunks, and neighbours overlap."""
    word = synthesize("seven", Voice())
    loud = np.flatnonzero(np.abs(word) > 0.01)
    waveform = np.tile(word[loud[0] : loud[-1] + 1], 30)
    monkeypatch.setattr(cutting, "max_seconds", 6.0)
    whole = cutting.transcribe(waveform)
    chunks = recognized_chunks(cutting, monkeypatch)
    assert tuple(finished(list(stream(blocks_of(waveform), cutting)))) == whole.segments
    assert len(whole.segments) > 1
    work = sum(chunk.end - chunk.start for chunk in chunks)
    assert len(waveform) > 10 * SAMPLE_RATE
    assert 2 * len(waveform) < work * SAMPLE_RATE < (MOST_WORK + 2) * len(waveform)


def recognized_chunks(transcriber: Transcriber, monkeypatch: pytest.MonkeyPatch) -> list[Chunk]:
    """Every chunk that is transcribed from now on."""
    chunks: list[Chunk] = []
    recognize = transcriber.recognize_chunks

    def listed(batch: Sequence[Chunk]) -> list[Recognition]:
        chunks.extend(batch)
        return recognize(batch)

    monkeypatch.setattr(transcriber, "recognize_chunks", listed)
    return chunks


def test_a_trained_head_streams_too(head_folder: Path, speech: Waveform) -> None:
    """Its texts mean nothing, since its weights are random."""
    head = load(head_folder, device="cpu", decoding=replace(UNGUARDED, decoder=None, cut_at_pauses=True))
    texts = [segment.text for segment in finished(list(stream(blocks_of(speech, 20_000), head)))]
    assert texts == [segment.text for segment in head.transcribe(speech).segments]
    assert len(set(texts)) == 2


def test_an_empty_stream_is_an_empty_transcript(transcriber: Transcriber) -> None:
    def nothing() -> Iterator[Waveform]:
        yield from ()

    (update,) = stream(nothing(), transcriber)
    assert update == StreamUpdate(0.0, (), "", "")
