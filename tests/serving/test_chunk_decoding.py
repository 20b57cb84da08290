"""Files are cut in forks into the chunks that they are cut into here, and the server itself detects no speech."""

import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from asr_doge.audio import SAMPLE_RATE, read_audio
from asr_doge.audio.voice_activity import VoiceActivityDetector
from asr_doge.errors import AudioError, DamagedAudioError
from asr_doge.inference.chunking import Chunk, cut_with
from asr_doge.inference.cutting import cut_into_chunks
from asr_doge.serving.chunk_decoding import ChunkDecoder
from asr_doge.serving.cutting_child import packed, unpacked
from asr_doge.serving.session_settings import Chunking, TurnDetection
from asr_doge.serving.turns import TurnCutter
from tests.serving.conftest import Running

Waveform = NDArray[np.float32]
LONGEST = 5.0
TURNS = TurnDetection(prefix_padding_ms=100, silence_duration_ms=300)


@pytest.fixture(scope="module")
def decoder() -> Iterator[ChunkDecoder]:
    with closing(ChunkDecoder(LONGEST, memory=500_000_000, max_duration=60.0)) as one:
        yield one


@pytest.fixture(scope="module")
def dead(speech: Waveform, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """At another rate, with dead silence for a second and a half, in a length that the model reads at once."""
    path = tmp_path_factory.mktemp("dead") / "dead.wav"
    said = speech[: 2 * SAMPLE_RATE]
    soundfile.write(path, np.concatenate([said, np.zeros(3 * SAMPLE_RATE // 2), said[:SAMPLE_RATE]]), 24_000)
    return path


def chunks_of(decoder: ChunkDecoder, path: Path, chunking: Chunking, given: list[Any] | None = None) -> list[Chunk]:
    """And in `given` what was given until an error came."""
    given = [] if given is None else given
    with path.open("rb") as file:
        given.extend(decoder.chunks(file, path.name, threading.Event(), lambda note: None, chunking))
    assert given[-1] == (len(read_audio(path)), None)
    return [chunk for _, chunk in given if chunk is not None]


def cut_here(path: Path, chunking: Chunking) -> list[Chunk]:
    """In blocks of another size than those of a file."""
    waveform = read_audio(path)
    blocks = np.split(waveform, range(9_001, len(waveform), 9_001))
    if isinstance(chunking, TurnDetection):
        return list(cut_with(TurnCutter(chunking, LONGEST), blocks))
    return list(cut_into_chunks(blocks, LONGEST, chunking == "auto"))


@pytest.mark.parametrize("name", ["recording", "dead"])
@pytest.mark.parametrize("chunking", [None, "auto", TURNS], ids=["model", "pauses", "turns"])
def test_a_file_is_cut_as_it_is_here(
    decoder: ChunkDecoder, request: pytest.FixtureRequest, name: str, chunking: Chunking
) -> None:
    path = request.getfixturevalue(name)
    found, expected = chunks_of(decoder, path, chunking), cut_here(path, chunking)
    assert len(found) > 1
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.samples, other.samples)
        assert astuple(one)[1:] == astuple(other)[1:]


times = st.floats(0, 1e6)


@given(
    st.integers(0, 2**40),
    st.lists(st.floats(-1, 1, width=32), max_size=5),
    *[times] * 3,
    st.none() | st.tuples(times, times),
    st.booleans(),
    st.booleans(),
)
def test_a_chunk_arrives_as_it_was_sent(
    heard: int,
    samples: list[float],
    start: float,
    before: float,
    after: float,
    speech: tuple[float, float] | None,
    is_gap: bool,
    is_uncut: bool,
) -> None:
    sent = Chunk(np.array(samples, dtype=np.float32), start, speech, before, after, is_gap, is_uncut)
    until, arrived = unpacked(packed(heard, sent))
    assert until == heard
    assert arrived is not None
    assert arrived.samples.tolist() == sent.samples.tolist()
    assert arrived.samples.flags.writeable
    assert astuple(arrived)[1:] == astuple(sent)[1:]


def test_a_chunk_may_be_as_long_as_the_model_reads(tmp_path: Path) -> None:
    """More than the 16 MB that other forks send at a time."""
    noise = np.random.default_rng(0).normal(0, 0.1, 270 * SAMPLE_RATE)
    soundfile.write(tmp_path / "long.wav", noise, SAMPLE_RATE)
    with closing(ChunkDecoder(270.0, memory=1_000_000_000, max_duration=600.0)) as decoder:
        (chunk,) = chunks_of(decoder, tmp_path / "long.wav", None)
    assert len(chunk.samples) == len(noise)
    assert chunk.is_uncut


@pytest.mark.parametrize("chunking", [None, TURNS], ids=["model", "turns"])
def test_too_long_a_file_is_refused_though_nothing_is_cut_off_it(
    decoder: ChunkDecoder, tmp_path: Path, chunking: Chunking
) -> None:
    """Of silence there are no turns."""
    soundfile.write(tmp_path / "silence.flac", np.zeros(600 * SAMPLE_RATE, dtype=np.int16), SAMPLE_RATE)
    with pytest.raises(AudioError, match=r"^silence\.flac is longer than 60 s"):
        chunks_of(decoder, tmp_path / "silence.flac", chunking)


def test_who_leaves_need_not_wait_for_a_turn(decoder: ChunkDecoder, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silence.flac", np.zeros(50 * SAMPLE_RATE, dtype=np.int16), SAMPLE_RATE)
    cancelled = threading.Event()
    with (tmp_path / "silence.flac").open("rb") as file:
        given = decoder.chunks(file, "silence.flac", cancelled, lambda note: None, TURNS)
        heard, chunk = next(given)
        assert heard < 50 * SAMPLE_RATE
        assert chunk is None
        cancelled.set()
        assert list(given) == []


def test_of_a_damaged_file_the_readable_part_is_cut(decoder: ChunkDecoder, recording: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged.wav"
    path.write_bytes(recording.read_bytes()[: 44 + 2 * 3 * SAMPLE_RATE])
    given: list[tuple[int, Chunk | None]] = []
    with pytest.raises(DamagedAudioError, match=r"^damaged\.wav is truncated or corrupt"):
        chunks_of(decoder, path, None, given)
    whole, end = given
    assert end == (3 * SAMPLE_RATE, None)
    assert whole[1] is not None
    assert len(whole[1].samples) == 3 * SAMPLE_RATE


@pytest.mark.parametrize("stream", [False, True])
def test_the_server_detects_no_speech_of_a_file_itself(
    served: Running, dead: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """Everybody would wait for it, as it holds Python's lock."""
    fed: list[int] = []
    monkeypatch.setattr(VoiceActivityDetector, "feed", lambda detector, samples: fed.append(len(samples)))
    fields: dict[str, Any] = {"file": dead, "model": "nano", "stream": stream}
    answer = served.client().audio.transcriptions.create(**fields)
    assert (list(answer)[-1] if stream else answer).text
    assert fed == []
