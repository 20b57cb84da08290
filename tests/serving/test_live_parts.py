"""The parts of a live session apart from the network: samples, turns, settings, deltas, hints."""

import base64
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.signal import resample_poly

from asr_doge.audio import SAMPLE_RATE, Voice, synthesize
from asr_doge.audio.resampling import BlockResampler
from asr_doge.decoding.configuration import DecodingConfig
from asr_doge.inference.chunking import Chunk
from asr_doge.inference.results import Segment
from asr_doge.inference.stream import StreamUpdate, stream
from asr_doge.inference.transcription import load
from asr_doge.serving.hints import hotwords_of
from asr_doge.serving.live_audio import AudioFormat, AudioInput
from asr_doge.serving.live_items import Deltas
from asr_doge.serving.session_settings import SessionSettings, TurnDetection
from asr_doge.serving.turns import TurnAudio, TurnCutter, TurnDetector, TurnEvent, TurnStarted, TurnStopped

Waveform = NDArray[np.float32]
NOISE = np.random.default_rng(0).normal(0, 0.1, 9_000).astype(np.float32)


@settings(max_examples=30)
@given(st.sampled_from([8000, 24000, 44100, 48000]), st.lists(st.integers(1, 3000), min_size=1, max_size=12))
def test_blocks_join_up_to_the_whole_resampled(rate: int, sizes: list[int]) -> None:
    """The whole is SciPy's."""
    cuts = np.cumsum(sizes)
    resampler = BlockResampler(rate, SAMPLE_RATE)
    parts = [resampler.feed(block) for block in np.split(NOISE, cuts[cuts < len(NOISE)])]
    divisor = int(np.gcd(rate, SAMPLE_RATE))
    whole = resample_poly(NOISE, SAMPLE_RATE // divisor, rate // divisor)
    joined = np.concatenate([*parts, resampler.finish()])
    assert joined.shape == whole.shape
    np.testing.assert_allclose(joined, whole, atol=1e-5)


@pytest.mark.parametrize("rate", [8000, 24000, 48000])
def test_the_resampler_is_only_milliseconds_behind(rate: int) -> None:
    resampler = BlockResampler(rate, SAMPLE_RATE)
    given_seconds = 0.02
    received = len(resampler.feed(NOISE[: round(given_seconds * rate)])) / SAMPLE_RATE
    assert given_seconds - 0.003 <= received <= given_seconds


@given(st.lists(st.integers(1, 50), max_size=8))
def test_bytes_may_be_cut_anywhere(sizes: list[int]) -> None:
    samples = (NOISE[:100] * 32767).astype("<i2")
    reader = AudioInput(AudioFormat("audio/pcm", SAMPLE_RATE))
    content = samples.tobytes()
    cuts = [0, *[cut for cut in np.cumsum(sizes).tolist() if cut < len(content)], len(content)]
    parts = [reader.read(base64.b64encode(content[a:b]).decode()) for a, b in pairwise(cuts)]
    np.testing.assert_array_equal(np.concatenate(parts), samples.astype(np.float32) / 32768)


def turns_of(detector: TurnDetector, waveform: Waveform, size: int) -> list[TurnEvent]:
    return [event for start in range(0, len(waveform), size) for event in detector.feed(waveform[start : start + size])]


def spans(events: list[TurnEvent]) -> list[tuple[int, int, int]]:
    """Start, end and samples of each turn."""
    found, start, count = [], 0, 0
    for event in events:
        if isinstance(event, TurnStarted):
            start, count = event.at, 0
        elif isinstance(event, TurnAudio):
            count += len(event.samples)
        elif isinstance(event, TurnStopped):
            found.append((start, event.at, count))
    return found


@pytest.mark.parametrize("silence_ms", [350, 700])
def test_turns_hold_what_was_said_and_the_sound_around_it(silence_ms: int) -> None:
    word = synthesize("seven", Voice())
    loud = np.flatnonzero(np.abs(word) > 0.02)
    pause = np.zeros(2 * SAMPLE_RATE, dtype=np.float32)
    waveform = np.concatenate([pause, word, pause, word, pause])
    found = spans(turns_of(TurnDetector(TurnDetection(300, silence_ms)), waveform, 777))
    assert len(found) == 2
    for (start, end, count), at in zip(found, (len(pause), 2 * len(pause) + len(word)), strict=True):
        first, last = at + loud[0], at + loud[-1]
        assert count == end - start
        assert first - 0.6 * SAMPLE_RATE < start < first
        assert last < end < last + (silence_ms / 1000 + 0.5) * SAMPLE_RATE


@pytest.mark.parametrize("gain", [0.1, 0.01, 0.003, 0.001])
def test_a_quiet_stream_has_the_turns_of_a_loud_one(gain: float) -> None:
    """But for soft sounds at their edges, of which little is left in 16 bits."""
    pause = np.zeros(2 * SAMPLE_RATE, dtype=np.float32)
    said = [synthesize(text, Voice(words_per_minute=130)) for text in ("one two three four", "nine eight seven")]
    waveform = np.concatenate([pause, said[0], pause, said[1], pause])
    loud, quiet = (
        spans(turns_of(TurnDetector(TurnDetection(300, 700)), (factor * waveform).astype(np.float32), 777))
        for factor in (1.0, gain)
    )
    assert len(loud) == len(quiet) == 2
    for one, other in zip(loud, quiet, strict=True):
        assert np.abs(np.subtract(one[:2], other[:2])).max() <= 0.3 * SAMPLE_RATE


@settings(max_examples=10)
@given(st.integers(100, 40_000))
def test_how_the_samples_arrive_changes_no_turn(size: int) -> None:
    waveform = np.concatenate([np.zeros(SAMPLE_RATE, dtype=np.float32), synthesize("one two", Voice()), NOISE * 0])
    waveform = np.concatenate([waveform, np.zeros(SAMPLE_RATE, dtype=np.float32)])
    expected = spans(turns_of(TurnDetector(TurnDetection()), waveform, 512))
    assert spans(turns_of(TurnDetector(TurnDetection()), waveform, size)) == expected
    assert len(expected) == 1


def update(finished: str, committed: str, tentative: str = "") -> StreamUpdate:
    segments = tuple(Segment(text, 0.0, 1.0) for text in finished.split("|") if text)
    return StreamUpdate(1.0, segments, committed, tentative)


@pytest.mark.parametrize(
    ("updates", "joined"),
    [
        ([update("", "a"), update("", "a b"), update("a b c", ""), update("", "d"), update("d", "")], "a b c d"),
        ([update("", "a b"), update("a b", "c")], "a b c"),
        ([update("a b|c", "d"), update("d e", "")], "a b c d e"),
        ([update("", "a x"), update("a b c", "")], "a x c"),  # what was sent stays sent
        ([update("", ""), update("", "")], ""),
    ],
)
def test_deltas_double_nothing_and_take_nothing_back(updates: list[StreamUpdate], joined: str) -> None:
    deltas = Deltas()
    assert "".join(deltas.take(one) for one in updates) == joined


def test_no_word_is_sent_twice_where_chunks_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digits without a pause, in chunks of six seconds that overlap; no digit is said twice in a row."""
    said = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine") * 2
    words = [synthesize(word, Voice()) for word in said]
    loud = [np.flatnonzero(np.abs(word) > 0.01) for word in words]
    spoken = np.concatenate([word[at[0] : at[-1] + 1] for word, at in zip(words, loud, strict=True)])
    nano = load(device="cpu", decoding=DecodingConfig(cut_at_pauses=True))
    monkeypatch.setattr(nano, "max_seconds", 6.0)
    deltas, updates = Deltas(), list(stream(np.split(spoken, range(3200, len(spoken), 3200)), nano))
    sent = "".join(map(deltas.take, updates)).split()
    assert sum(len(update.finished) for update in updates) > 1
    assert all(one != next_ for one, next_ in pairwise(sent))
    assert len(set(sent) & set(said)) == len(set(said))
    assert len(sent) <= len(said)


@pytest.mark.parametrize(
    ("prompt", "keywords", "hotwords"),
    [
        ("Kubernetes, gRPC; Anna-Maria\nNew York", [], ("Kubernetes", "gRPC", "Anna-Maria", "New York")),
        ("This is a talk about the weather and nothing else.", [], None),
        ("A talk about many other things here: etcd", ["CoreDNS", "etcd"], ("CoreDNS", "etcd")),
        (None, [], None),
        (", ".join(f"n{number}" for number in range(300)), ["k"], ("k", *(f"n{number}" for number in range(199)))),
        (f"{'a' * 61}, etcd", [], ("etcd",)),
    ],
)
def test_only_names_of_a_prompt_are_listened_for(
    prompt: str | None, keywords: list[str], hotwords: tuple[str, ...] | None
) -> None:
    assert hotwords_of(prompt, keywords) == hotwords


def test_an_update_changes_only_what_it_names() -> None:
    models = ("nano", "whisper-1", "gpt-realtime-whisper")
    first = SessionSettings("nano").updated(
        {"audio": {"input": {"format": {"type": "audio/pcma"}, "transcription": {"language": "de"}}}}, models
    )
    assert (first.format.type, first.language, first.turn_detection) == ("audio/pcma", "de", TurnDetection())
    second = first.updated({"audio": {"input": {"turn_detection": None}}}, models)
    assert (second.format, second.language, second.turn_detection) == (first.format, "de", None)
    third = second.updated(
        {"audio": {"input": {"turn_detection": {"type": "server_vad", "silence_duration_ms": 200}}}}, models
    )
    assert third.turn_detection == TurnDetection(300, 200)
    committing = SessionSettings("nano").updated({"audio": {"input": {"transcription": {"model": models[2]}}}}, models)
    assert committing.turn_detection is None


@pytest.mark.parametrize("given", [{"type": []}, {"type": "audio/pcm", "rate": {}}, {"type": {"a": 1}}, [], 7])
def test_a_format_of_the_wrong_type_is_passed_over(given: object) -> None:
    settings = SessionSettings("nano")
    assert settings.updated({"audio": {"input": {"format": given}}}, ("nano",)) == settings


def cut(waveform: Waveform, sizes: list[int], padding_ms: int = 300, silence_ms: int = 300) -> list[Chunk]:
    cutter = TurnCutter(TurnDetection(padding_ms, silence_ms), max_seconds=30.0)
    cuts = np.cumsum(sizes)
    chunks = [chunk for block in np.split(waveform, cuts[cuts < len(waveform)]) for chunk in cutter.feed(block)]
    return chunks + cutter.finish()


@pytest.fixture(scope="module")
def two_words() -> Waveform:
    """Said after 2 s and 3 s without a sound, with nothing after the second."""
    parts = [np.zeros(2 * SAMPLE_RATE, dtype=np.float32), synthesize("seven", Voice())]
    parts += [np.zeros(3 * SAMPLE_RATE, dtype=np.float32), synthesize("nine", Voice())]
    return np.concatenate(parts)


@settings(max_examples=20)
@given(st.lists(st.integers(1, 40_000), max_size=12))
def test_a_file_is_cut_into_the_same_turns_however_it_arrives(two_words: Waveform, sizes: list[int]) -> None:
    whole, parts = cut(two_words, []), cut(two_words, sizes)
    assert [chunk.start for chunk in parts] == [chunk.start for chunk in whole]
    for chunk, other in zip(parts, whole, strict=True):
        np.testing.assert_array_equal(chunk.samples, other.samples)
        start = round(chunk.start * SAMPLE_RATE)
        np.testing.assert_array_equal(chunk.samples, two_words[start : start + len(chunk.samples)])


def test_a_turn_of_a_file_begins_with_the_padding_that_was_asked_for(two_words: Waveform) -> None:
    """300 ms are nine whole frames of 32 ms."""
    (first, second), (padded, second_padded) = (
        [chunk for chunk in cut(two_words, [], padding_ms) if not chunk.is_gap] for padding_ms in (0, 300)
    )
    assert 1.8 < first.start <= 2.1
    assert first.start - padded.start == pytest.approx(9 * 512 / SAMPLE_RATE)
    assert second.start - second_padded.start == pytest.approx(9 * 512 / SAMPLE_RATE)
    assert second.end == pytest.approx(len(two_words) / SAMPLE_RATE)
    for chunk in (first, padded, second):
        assert chunk.start <= chunk.speech_bounds()[0] < chunk.speech_bounds()[1] <= chunk.end


def test_a_turn_longer_than_the_model_reads_is_cut_at_its_pauses(two_words: Waveform) -> None:
    cutter = TurnCutter(TurnDetection(300, 4000), max_seconds=3.0)
    chunks = [chunk for chunk in [*cutter.feed(two_words), *cutter.finish()] if not chunk.is_gap]
    assert len(chunks) == 2
    assert chunks[0].start == pytest.approx(cut(two_words, [])[0].start, abs=0.5)
    assert all(len(chunk.samples) <= 3 * SAMPLE_RATE for chunk in chunks)
    assert chunks[1].speech is not None
    assert chunks[1].speech[0] > 2 + 3


def test_no_sound_is_in_two_turns() -> None:
    """With a pause shorter than the padding, the second turn begins where the first ends."""
    word, pause = synthesize("seven", Voice()), np.zeros(SAMPLE_RATE // 4, dtype=np.float32)
    first, second = cut(np.concatenate([word, pause, word]), [], padding_ms=2000, silence_ms=100)
    assert first.end == pytest.approx(second.start)


@pytest.mark.parametrize(("seconds", "chunks"), [(0.05, 1), (2.99, 1), (3.5, 0)])
def test_a_recording_without_a_turn_is_one_chunk_if_it_can_be_read_at_once(seconds: float, chunks: int) -> None:
    noise = np.random.default_rng(0).normal(0, 2e-4, round(seconds * SAMPLE_RATE)).astype(np.float32)
    cutter = TurnCutter(TurnDetection(), max_seconds=3.0)
    found = [chunk for block in np.array_split(noise, 7) for chunk in cutter.feed(block)] + cutter.finish()
    assert len(found) == chunks
    for chunk in found:
        assert (chunk.start, chunk.is_gap) == (0.0, False)
        np.testing.assert_array_equal(chunk.samples, noise)


def test_a_turn_is_cut_at_dead_silence_in_it(two_words: Waveform) -> None:
    """Of which models make words; cut so, each word is in a chunk of its own."""
    chunks = [chunk for chunk in cut(two_words, [], silence_ms=4000) if not chunk.is_gap]
    sounding = np.flatnonzero(two_words)
    widest = int(np.diff(sounding).argmax())
    said_until, said_from = sounding[widest] / SAMPLE_RATE, sounding[widest + 1] / SAMPLE_RATE
    assert len(chunks) == 2
    assert said_until < chunks[0].end <= chunks[1].start < said_from
