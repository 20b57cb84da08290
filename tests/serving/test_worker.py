"""Chunks of many requests through one model: what each hears is what it hears alone."""

from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import closing, nullcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from asr_doge.audio import SAMPLE_RATE, Voice, synthesize
from asr_doge.decoding.configuration import DecodingConfig
from asr_doge.inference.chunking import Chunk
from asr_doge.inference.transcription import Transcriber, load
from asr_doge.serving import worker as worker_module
from asr_doge.serving.batching import MOST_LENGTH_RATIO, SHORT_SECONDS, PendingChunk, choose_batch
from asr_doge.serving.metrics import Metrics
from asr_doge.serving.worker import MOST_CHUNKS_CPU, MOST_CHUNKS_LIVE, ModelWorker, WorkerTranscriber
from tests.serving.conftest import Held
from tests.waiting import until

Waveform = NDArray[np.float32]
WAIT = 0.3
"""Long enough for several threads to meet in one batch, however busy the machine."""


@pytest.fixture(scope="module")
def nano() -> Transcriber:
    return load("nano", device="cpu")


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def worker(nano: Transcriber, metrics: Metrics) -> Iterator[ModelWorker]:
    one = ModelWorker("nano", lambda: nano, metrics, wait=WAIT)
    yield one
    one.close()


@pytest.fixture(scope="module")
def clips() -> list[Waveform]:
    texts = ("one", "two three", "four five six", "seven eight nine zero", "three three", "oh one two three four five")
    return [synthesize(text, Voice()) for text in texts]


def test_files_at_once_have_the_text_and_times_that_each_has_alone(
    nano: Transcriber, worker: ModelWorker, metrics: Metrics, clips: list[Waveform]
) -> None:
    alone = [nano.transcribe(clip) for clip in clips]
    with ThreadPoolExecutor(len(clips)) as threads:
        together = list(threads.map(lambda clip: WorkerTranscriber(worker).transcribe(clip), clips))
    assert [result.text for result in together] == [result.text for result in alone]
    for one, other in zip(together, alone, strict=True):
        ours = [word.start for segment in one.segments for word in segment.words]
        assert ours == pytest.approx([word.start for segment in other.segments for word in segment.words], abs=0.02)
    passes = metrics.text().decode().split("asr_doge_batch_chunks_count ")[1].split()[0]
    assert float(passes) < len(clips)


def chunk(seconds: float) -> Chunk:
    return Chunk(np.zeros(round(seconds * SAMPLE_RATE), dtype=np.float32), 0.0, None)


@given(st.lists(st.floats(0.1, 29.0), min_size=1, max_size=40), st.integers(1, 40))
def test_batches_are_of_similar_length_and_no_larger_than_allowed(lengths: list[float], most: int) -> None:
    waiting = [PendingChunk(chunk(length), None, None) for length in lengths]
    batches: list[list[float]] = []
    while waiting:
        chosen = choose_batch(waiting, batch_seconds=60, most=most)
        assert chosen[0] is waiting[0]
        waiting = [pending for pending in waiting if pending not in chosen]
        batches.append([pending.seconds for pending in chosen])
    assert sorted(length for batch in batches for length in batch) == pytest.approx(sorted(lengths), abs=1e-3)
    for batch in batches:
        assert len(batch) == 1 or max(batch) <= max(SHORT_SECONDS, MOST_LENGTH_RATIO * min(batch)) + 1e-3
        assert len(batch) == 1 or max(batch) * len(batch) <= 60 + 1e-3
        assert len(batch) <= most


def test_every_chunk_gets_an_answer_whatever_its_length(worker: ModelWorker) -> None:
    lengths = (0.1, 0.5, 1.9, 2.1, 5.0, 12.0, 0.3)
    waiting = worker.submit([chunk(length) for length in lengths], [None] * len(lengths), None, "file")
    assert [future.result(timeout=60).text for future in waiting] == [""] * len(lengths)


def test_live_chunks_go_before_files_that_came_earlier(nano: Transcriber, worker: ModelWorker) -> None:
    """A long file and a live chunk differ too much in length for one batch."""
    done: list[str] = []
    (of_file,) = worker.submit([chunk(20.0)], [None], None, "file")
    (of_stream,) = worker.submit([chunk(0.5)], [None], None, "ended")
    of_file.add_done_callback(lambda _: done.append("file"))
    of_stream.add_done_callback(lambda _: done.append("live"))
    of_file.result(60)
    of_stream.result(60)
    assert done == ["live", "file"]


def test_who_is_alone_waits_for_nobody(nano: Transcriber, clips: list[Waveform]) -> None:
    worker = ModelWorker("nano", lambda: nano, Metrics(), wait=86_400.0)
    with closing(worker), ThreadPoolExecutor(1) as threads:
        assert threads.submit(WorkerTranscriber(worker).transcribe, clips[0]).result(60).text


@pytest.fixture
def two_threads(nano: Transcriber, metrics: Metrics) -> Iterator[ModelWorker]:
    one = ModelWorker("nano", lambda: nano, metrics, wait=0.0, threads=2)
    yield one
    one.close()


def test_speech_that_ends_finds_a_free_thread(
    nano: Transcriber, two_threads: ModelWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many hypotheses and files wait, for they are given one thread only while somebody speaks."""
    held = Held(nano, monkeypatch)
    two_threads.submit([chunk(length) for length in (1.0, 6.0, 20.0)], [None] * 3, None, "open")
    files = two_threads.submit([chunk(25.0)], [None], None, "file")
    until(lambda: len(held.begun) == 1)
    (ended,) = two_threads.submit([chunk(3.0)], [None], None, "ended")
    until(lambda: len(held.begun) == 2)
    assert held.begun[1] == 3.0
    held.go.set()
    ended.result(60)
    files[0].result(60)


def test_what_may_wait_begins_once_nobody_speaks(
    nano: Transcriber, two_threads: ModelWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though nothing else happens that would wake the thread kept for speech."""
    monkeypatch.setattr(worker_module, "LIVE_SECONDS", 0.5)
    held = Held(nano, monkeypatch)
    (hypothesis,) = two_threads.submit([chunk(1.0)], [None], None, "open")
    (of_file,) = two_threads.submit([chunk(20.0)], [None], None, "file")
    until(lambda: len(held.begun) == 2)
    assert held.begun == [1.0, 20.0]
    assert not hypothesis.done()
    held.go.set()
    of_file.result(60)


def test_the_thread_kept_for_speech_halves_no_batch_of_hypotheses(
    nano: Transcriber, two_threads: ModelWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(nano, monkeypatch)
    waiting = two_threads.submit([chunk(3.0)] * 4, [None] * 4, None, "open")
    until(lambda: bool(held.begun))
    assert held.sizes == [4]
    held.go.set()
    for future in waiting:
        future.result(60)


def test_nothing_waits_for_a_hypothesis_once_its_speech_is_over(
    nano: Transcriber, two_threads: ModelWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(nano, monkeypatch)
    transcriber = WorkerTranscriber(two_threads, kind="ended")
    with ThreadPoolExecutor(1) as threads:
        hypothesis = threads.submit(transcriber.recognize_open, chunk(1.0))
        until(lambda: len(held.begun) == 1)
        transcriber.end_speech()
        assert hypothesis.result(60) is None  # though the model is still at work on it
        assert transcriber.recognize_open(chunk(1.0)) is None
        assert not transcriber.cancelled.is_set()
        held.go.set()
        assert len(transcriber.recognize_chunks([chunk(1.0)])) == 1


def test_two_threads_hear_what_one_hears(nano: Transcriber, two_threads: ModelWorker, clips: list[Waveform]) -> None:
    alone = [nano.transcribe(clip).text for clip in clips]
    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(lambda clip: WorkerTranscriber(two_threads).transcribe(clip).text, clips * 4))
    assert together == alone * 4


def test_who_leaves_is_not_worked_for(nano: Transcriber, metrics: Metrics) -> None:
    """The chunk waits for the other caller's as long as need be, so that it cannot have begun."""
    worker = ModelWorker("nano", lambda: nano, metrics, wait=86_400.0)
    transcriber, _other = WorkerTranscriber(worker), WorkerTranscriber(worker)
    with closing(worker), ThreadPoolExecutor(1) as threads:
        asking = threads.submit(transcriber.recognize_chunks, [chunk(1.0)])
        until(lambda: worker.waiting > 0)
        transcriber.cancel()
        with pytest.raises(CancelledError):
            asking.result(60)
    assert "asr_doge_audio_seconds_total 0.0" in metrics.text().decode()


def test_hotwords_of_one_caller_are_not_the_others(clips: list[Waveform]) -> None:
    """With a bonus so high that what nobody said is heard, by who listens for it and by nobody else."""
    eager = load("nano", device="cpu", decoding=DecodingConfig(hotword_weight=10.0))
    clip = synthesize("one nine two", Voice())
    whole = Chunk(clip, 0.0, (0.0, len(clip) / SAMPLE_RATE))
    worker = ModelWorker("nano", lambda: eager, Metrics(), wait=WAIT)
    hot = worker.submit([whole], [None], ("eight",), "file")
    plain = worker.submit([whole], [None], (), "file")
    (one,), (other,) = [[future.result(60).text for future in waiting] for waiting in (hot, plain)]
    worker.close()
    assert other == "one nine two"
    assert one == eager.recognize_chunks([whole], hotwords=[("eight",)])[0].text == "one eight nine two"


@pytest.mark.parametrize("is_live", [False, True])
def test_batches_of_files_are_smaller_while_a_live_session_is_open(
    nano: Transcriber, two_threads: ModelWorker, monkeypatch: pytest.MonkeyPatch, is_live: bool
) -> None:
    """Though nobody speaks yet: the first turn must not wait for large ones."""
    held = Held(nano, monkeypatch)
    with two_threads.session() if is_live else nullcontext():
        waiting = two_threads.submit([chunk(1.0)] * 32, [None] * 32, None, "file")
        until(lambda: len(held.begun) == 2)
    assert held.sizes[:2] == [MOST_CHUNKS_LIVE if is_live else MOST_CHUNKS_CPU] * 2
    held.go.set()
    for future in waiting:
        future.result(60)
