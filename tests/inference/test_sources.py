"""Whatever a caller hands in is transcribed as the same sound in a file is, or is one line that says what to pass."""

import io
import tempfile
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.signal import resample_poly

from asr_doge.errors import AudioError
from asr_doge.inference.results import FailedTranscription, Transcription
from asr_doge.inference.stream import StreamTranscriber, stream
from asr_doge.inference.transcription import SourceWithOptions, Transcriber
from tests.models import tiny
from tests.speech import RATE, write_wav

PCM: NDArray[np.int16] = np.round(8000 * np.clip(tiny.random_waveform(0.9, seed=3), -1, 1)).astype(np.int16)
FLOATS: NDArray[np.float32] = (PCM / 32768).astype(np.float32)  # exact, so that every way must give the very same text


class Named:
    """A path of somebody's own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


class Unseekable(io.RawIOBase):
    """What comes from a network."""

    def __init__(self, content: bytes) -> None:
        self._content = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._content.readinto(memoryview(buffer)[:1000])


def written(content: bytes) -> io.BytesIO:
    """A buffer that stands at its end, as it does after it was written to."""
    buffer = io.BytesIO()
    buffer.write(content)
    return buffer


ONE: dict[str, Callable[[Path], Any]] = {
    "name": str,
    "path": Path,
    "path-like": Named,
    "bytes": Path.read_bytes,
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "BytesIO": lambda path: io.BytesIO(path.read_bytes()),
    "BytesIO at its end": lambda path: written(path.read_bytes()),
    "BytesIO after a header": lambda path: (buffer := io.BytesIO(b"8 bytes." + path.read_bytes())).seek(8) and buffer,
    "open file": lambda path: path.open("rb"),
    "unbuffered file": lambda path: path.open("rb", buffering=0),
    "temporary file": lambda path: (file := tempfile.TemporaryFile()).write(path.read_bytes()) and file,  # noqa: SIM115
    "spooled file": lambda path: (file := tempfile.SpooledTemporaryFile()).write(path.read_bytes()) and file,  # noqa: SIM115
    "unseekable": lambda path: Unseekable(path.read_bytes()),
    "int16": lambda path: PCM,
    "float32": lambda path: FLOATS,
    "float64": lambda path: FLOATS.astype(np.float64),
    "column": lambda path: PCM[:, None],
    "row": lambda path: PCM[None, :],
    "tensor": lambda path: torch.from_numpy(FLOATS),
    "list": lambda path: FLOATS.tolist(),
    "list of NumPy's numbers": lambda path: list(FLOATS),
    "list of tensors without axes": lambda path: list(torch.from_numpy(FLOATS)),
    "tuple": lambda path: tuple(FLOATS.tolist()),
    "deque": lambda path: deque(FLOATS.tolist()),
    "array.array": lambda path: array("h", PCM.tobytes()),
    "memoryview of int16": lambda path: memoryview(PCM.tobytes()).cast("h"),
    "generator of numbers": lambda path: (number for number in FLOATS.tolist()),
    "of datasets": lambda path: {"path": "x.wav", "array": FLOATS, "sampling_rate": RATE},
    "of datasets, not decoded": lambda path: {"path": "x.wav", "bytes": path.read_bytes()},
    "of datasets, as a file": lambda path: {"path": str(path), "bytes": None},
    "of a pipeline": lambda path: {"raw": FLOATS, "sampling_rate": RATE},
    "with its language": lambda path: SourceWithOptions(path, None),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wav(tmp_path_factory.mktemp("sources") / "a.wav", FLOATS, subtype="PCM_16")


@pytest.fixture(scope="module")
def text(transcriber: Transcriber, path: Path) -> str:
    return transcriber.transcribe(path).text


@pytest.mark.parametrize("kind", ONE)
def test_one_recording_however_it_is_handed_in(transcriber: Transcriber, path: Path, text: str, kind: str) -> None:
    one = transcriber.transcribe(ONE[kind](path))
    assert isinstance(one, Transcription)
    assert (one.text, one.duration) == (text, len(PCM) / RATE)
    (each,) = transcriber.transcribe_each(ONE[kind](path))
    assert each == one


def test_an_open_file_stays_open_and_is_read_again(transcriber: Transcriber, path: Path, text: str) -> None:
    with path.open("rb") as file:
        assert [result.text for result in transcriber.transcribe([file, file])] == [text, text]
        assert not file.closed


SEVERAL: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "generator": lambda sources: (source for source in sources),
    "iterator": iter,
    "deque": deque,
    "values of a dictionary": lambda sources: dict(enumerate(sources)).values(),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_several_recordings_give_a_list(transcriber: Transcriber, path: Path, text: str, kind: str) -> None:
    sources = [path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), PCM, FLOATS.tolist()]
    results = transcriber.transcribe(SEVERAL[kind](sources))
    assert [result.text for result in results] == [text] * 6
    assert [result.path for result in results] == [path, path, None, None, None, None]
    assert transcriber.transcribe(SEVERAL[kind]([])) == []


def test_arrays_of_names_and_of_arrays_are_several(transcriber: Transcriber, path: Path, text: str) -> None:
    names: Any = np.array([str(path), str(path)])
    assert [result.text for result in transcriber.transcribe(names)] == [text, text]
    objects: Any = np.empty(2, dtype=object)
    objects[:] = [FLOATS, str(path)]
    assert [result.text for result in transcriber.transcribe(objects)] == [text, text]


NOTHING: dict[str, tuple[Callable[[Path], Any], str]] = {
    "None": (lambda path: None, "NoneType is nothing that can be transcribed: pass a file"),
    "number": (lambda path: 5, "int is nothing that can be transcribed"),
    "object": (lambda path: object(), "object is nothing that can be transcribed"),
    "text file": (lambda path: path.open(encoding="latin-1"), "is open as text: open it with mode 'rb'"),
    "StringIO": (lambda path: io.StringIO("RIFF"), "is open as text: open it with mode 'rb'"),
    "file to write": (lambda path: path.with_suffix(".new").open("wb"), "cannot be read .*: open it with mode 'rb'"),
    "empty bytes": (lambda path: b"", "what was passed as bytes is empty"),
    "empty buffer": (lambda path: io.BytesIO(), "the open BytesIO is empty"),
    "bytes of no audio": (lambda path: b"Dear Sir or Madam" * 100, "what was passed as bytes is not audio"),
    "samples and rate": (lambda path: (FLOATS, RATE), "a pair of samples and a sampling rate .* sampling_rate="),
    "rate and samples": (lambda path: (RATE, PCM), "a pair of samples and a sampling rate .* sampling_rate="),
    "whole numbers": (lambda path: PCM.tolist(), "samples of type int64: pass floats in .* or int16"),
    "address": (lambda path: "https://example.org/a.wav", "is an address .*: fetch the file"),
    "null character": (lambda path: "a\0.wav", "holds a null character: correct the path"),
    "long name": (lambda path: "n" * 300, "cannot be opened .*: check the path"),
    "mapping of nothing": (lambda path: {"audio": 1}, 'a mapping needs "array" and "sampling_rate"'),
    "samples of no rate": (lambda path: {"array": FLOATS}, 'no "sampling_rate": add it'),
    "complex numbers": (lambda path: FLOATS.astype(np.complex64), "type complex64"),
}


@pytest.mark.parametrize("kind", NOTHING)
def test_what_cannot_be_transcribed_is_one_line(transcriber: Transcriber, path: Path, text: str, kind: str) -> None:
    make, finding = NOTHING[kind]
    with pytest.raises(AudioError, match=finding) as caught:
        transcriber.transcribe(make(path))
    assert "\n" not in str(caught.value)
    before, failed, after = transcriber.transcribe_each([path, make(path), PCM])
    assert isinstance(before, Transcription)
    assert isinstance(after, Transcription)
    assert before.text == after.text == text
    assert isinstance(failed, FailedTranscription)


def test_a_closed_file_is_told(transcriber: Transcriber, path: Path) -> None:
    with path.open("rb") as file:
        pass
    with pytest.raises(AudioError, match=r"a.wav cannot be read .*closed file.*: open it with mode 'rb', and keep"):
        transcriber.transcribe(file)


# sampling rates


@pytest.mark.parametrize("rate", [8000, 44_100, 48_000.0, np.int64(22_050)])
def test_samples_of_a_told_rate_are_resampled(transcriber: Transcriber, rate: Any, path: Path, text: str) -> None:
    samples = np.asarray(resample_poly(FLOATS.astype(np.float64), int(rate), RATE))
    told = transcriber.transcribe(samples, sampling_rate=rate)
    assert told.duration == pytest.approx(0.9, abs=0.001)
    dataset = {"array": samples, "sampling_rate": rate}
    assert transcriber.transcribe(dataset) == told
    assert list(transcriber.transcribe_each([SourceWithOptions(samples, sampling_rate=rate)])) == [told]
    results = transcriber.transcribe([path, samples], sampling_rate=rate)
    assert [results[0].text, results[1]] == [text, told]  # files state their own


@pytest.mark.parametrize("rate", [0, -16_000, 44_100.5, float("nan"), 12, 10**9, "16k"])
def test_rates_that_no_recording_has_are_refused(transcriber: Transcriber, rate: Any) -> None:
    with pytest.raises(AudioError, match=r"a sampling rate of .* cannot be right"):
        transcriber.transcribe(FLOATS, sampling_rate=rate)
    with pytest.raises(AudioError, match=r"a sampling rate of .* cannot be right"):
        list(stream([FLOATS], transcriber, sampling_rate=rate))


# streams

BLOCKS: dict[str, Callable[[NDArray[np.int16]], Any]] = {
    "int16": lambda block: block,
    "float32": lambda block: block.astype(np.float32) / 32768,
    "float64": lambda block: block / 32768,
    "[n, 1] of int16": lambda block: block[:, None],
    "[1, n] of floats": lambda block: block[None, :] / 32768,
    "stereo": lambda block: np.stack([block, block], axis=1),
    "int32": lambda block: block.astype(np.int32) * 65536,
    "tensor": lambda block: torch.from_numpy(block.copy()),
    "list": lambda block: (block / 32768).tolist(),
    "read-only": lambda block: np.frombuffer(block.tobytes(), np.int16),
}


def blocks(make: Callable[[NDArray[np.int16]], Any]) -> Iterator[Any]:
    for start in range(0, len(PCM), 1234):
        yield make(PCM[start : start + 1234])
        yield make(PCM[:0])  # microphones give such


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_streams_blocks_may_be_of_any_type(transcriber: Transcriber, text: str, kind: str) -> None:
    (*_, last) = stream(blocks(BLOCKS[kind]), transcriber)
    assert " ".join(segment.text for segment in last.finished) == text
    assert last.seconds == len(PCM) / RATE


def test_a_stream_of_another_rate_is_resampled(transcriber: Transcriber) -> None:
    samples = np.round(resample_poly(FLOATS.astype(np.float64), 3, 1) * 32767).astype(np.int16)
    decoding = replace(transcriber.recognizer.config, cut_at_pauses=True)  # as streams are cut
    expected = Transcriber(transcriber.loaded, decoding=decoding).transcribe(samples, sampling_rate=48_000)
    (*_, last) = stream(np.array_split(samples, 7), transcriber, sampling_rate=48_000)
    assert last.seconds == expected.duration
    assert last.finished == expected.segments
    (*_, whole) = stream(samples, transcriber, sampling_rate=48_000)  # in one block
    assert whole == last


@pytest.mark.parametrize("block", [b"\0\0", "a.wav", Path("a.wav"), [float("nan")], 0.5, None, {"array": [0.0]}])
def test_what_is_no_block_is_told_and_the_stream_may_go_on(transcriber: Transcriber, text: str, block: Any) -> None:
    live = StreamTranscriber(transcriber)
    live.feed(PCM[:5000])
    with pytest.raises(AudioError) as caught:
        live.feed(block)
    assert "\n" not in str(caught.value)
    live.feed(PCM[5000:])
    live.finish()
    assert live.transcription().text == text
