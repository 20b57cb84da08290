"""Files that are damaged, hang or fill the memory of a decoder cost themselves alone, and leave nothing behind."""

import tempfile
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from openai import APIError, BadRequestError
from starlette.formparsers import MultiPartParser

from asr_doge.audio import SAMPLE_RATE, file_decoding
from asr_doge.audio.file_decoding import FileDecoder
from asr_doge.audio.reading import read_blocks
from asr_doge.errors import AudioError
from tests.scaling.conftest import python_path
from tests.scaling.fragile.sitecustomize import HANGS
from tests.serving.clients import Waveform, half_a_request, idle
from tests.serving.conftest import Running
from tests.waiting import until


def hostile(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.wav"
    if kind == "much silence":
        soundfile.write(path, np.zeros(600 * 8000, dtype=np.int16), 8000, format="FLAC")
    elif kind == "cut":
        with av.open(str(path), "w", format="mp4") as output:
            stream = output.add_stream("aac", rate=16000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 160_000), dtype=np.float32), "fltp", "mono")
            frame.sample_rate = 16000
            output.mux([*stream.encode(frame), *stream.encode(None)])
        path.write_bytes(path.read_bytes()[:-400])
    elif kind == "a playlist":
        path.write_text("#EXTM3U\n/etc/passwd\nhttp://127.0.0.1/secret\n")
    return path


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("much silence", "longer than 60 s"),
        ("cut", "truncated"),  # an MP4 without its index, which stands at the end
        ("a playlist", "not audio"),
    ],
)
def test_a_hostile_file_costs_itself_only(
    strict: Running, recording: Path, tmp_path: Path, kind: str, why: str
) -> None:
    path = hostile(tmp_path, kind)
    with pytest.raises(BadRequestError, match=why) as refused:
        strict.client().audio.transcriptions.create(file=path, model="nano")
    assert path.name in refused.value.message
    assert str(tmp_path) not in refused.value.message
    assert strict.client().audio.transcriptions.create(file=recording, model="nano").text


@pytest.fixture
def truncated(recording: Path, tmp_path: Path) -> Path:
    """A WAV that promises more than it holds, which shows at its end: the first sentence, and a part of the pause."""
    samples, rate = soundfile.read(recording, dtype="int16")
    path = tmp_path / "cut.wav"
    path.write_bytes(recording.read_bytes()[: 44 + 2 * (first_pause(samples, rate) + rate)])
    return path


def first_pause(samples: NDArray[np.int16], rate: int) -> int:
    """Where the first second of nothing but the fixture's faint noise begins."""
    sounds = np.cumsum(np.abs(samples) > 6)
    return int(np.argmax(sounds[rate:] == sounds[:-rate])) + 1


@pytest.mark.parametrize("stream", [False, True])
def test_of_a_truncated_file_there_is_what_can_be_read(strict: Running, truncated: Path, stream: bool) -> None:
    fields: dict[str, Any] = {"file": truncated, "model": "nano", "stream": stream}
    answer = strict.client().audio.transcriptions.create(**fields)
    reply = list(answer)[-1].to_dict() if stream else answer.to_dict()
    assert reply["text"] == "one two three four"
    (warning,) = reply["warnings"]
    assert warning.startswith("cut.wav is truncated or corrupt")


def test_replies_in_text_warn_in_a_header(strict: Running, truncated: Path) -> None:
    answer = strict.client().audio.transcriptions.with_raw_response.create(
        file=("schön.wav", truncated.read_bytes()), model="nano", response_format="text"
    )
    assert answer.text == "one two three four\n"
    assert answer.headers["x-warnings"].startswith(r"sch\xf6n.wav is truncated or corrupt")


def test_remarks_on_a_recording_are_passed_on(strict: Running, speech: Waveform, tmp_path: Path) -> None:
    """Two channels that cancel each other out in their mean."""
    soundfile.write(tmp_path / "opposed.wav", np.stack([speech, -speech], axis=1), SAMPLE_RATE)
    notes: list[str] = []
    list(read_blocks(tmp_path / "opposed.wav", on_note=notes.append))
    reply = strict.client().audio.transcriptions.create(file=tmp_path / "opposed.wav", model="nano").to_dict()
    assert notes
    assert reply["warnings"] == [note.replace(f"{tmp_path}/", "") for note in notes]


def test_a_streamed_reply_ends_in_an_error_event(strict: Running, tmp_path: Path) -> None:
    """Of a file of which nothing can be read; a reply that has begun cannot become a 400."""
    path = hostile(tmp_path, "a playlist")
    with pytest.raises(APIError, match=r"a playlist\.wav is not audio") as failed:
        list(strict.client().audio.transcriptions.create(file=path, model="nano", stream=True))
    assert failed.value.code == "unreadable_audio"


def test_a_file_that_takes_too_much_memory_fails_alone(recording: Path) -> None:
    def samples(memory: int) -> int:
        decoder = FileDecoder(memory, max_duration=60)
        try:
            with recording.open("rb") as file:
                return sum(len(block) for block in decoder.blocks(file, "mine.wav", threading.Event()))
        finally:
            decoder.close()

    # With so little, Python itself may fail before it can say of what.
    with pytest.raises(AudioError, match=r"^mine\.wav (takes too much memory|could not be decoded)"):
        samples(memory=1000)
    assert samples(memory=200_000_000) == soundfile.info(recording).frames


def test_a_decoder_that_hangs_is_ended(tmp_path: Path, recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", python_path())
    monkeypatch.setattr(file_decoding, "BLOCK_SECONDS", 1)
    (tmp_path / "hangs.wav").write_bytes(HANGS)
    decoder = FileDecoder(1_000_000_000, max_duration=60)
    with (tmp_path / "hangs.wav").open("rb") as hangs, recording.open("rb") as file:
        with pytest.raises(AudioError, match=r"^mine\.wav takes too much memory or time"):
            list(decoder.blocks(hangs, "mine.wav", threading.Event()))
        monkeypatch.undo()
        assert any(len(block) for block in decoder.blocks(file, "mine.wav", threading.Event()))
    decoder.close()


def test_the_decoding_process_is_replaced_when_it_dies(strict: Running, recording: Path) -> None:
    strict.service.decoder.files.process.kill()
    strict.service.decoder.files.process.wait()
    assert strict.client().audio.transcriptions.create(file=recording, model="nano").text


def test_nothing_is_left_on_the_disk(strict: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = tmp_path.parent / "large.wav"
    soundfile.write(path, np.zeros(9 * SAMPLE_RATE), SAMPLE_RATE, subtype="DOUBLE")
    assert path.stat().st_size > MultiPartParser.spool_max_size  # more than is held in memory
    strict.client().audio.transcriptions.create(file=path, model="nano")
    with closing(half_a_request(strict)):
        until(lambda: strict.service.admission.is_full)
    until(lambda: idle(strict))
    assert list(tmp_path.iterdir()) == []
