"""Streams through the command: samples from a pipe, files in passing, and a microphone played by a recording."""

import io
import json
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from asr_doge.audio import Voice, synthesize
from asr_doge.cli import listen
from asr_doge.cli.listen import microphone_blocks
from asr_doge.cli.live import print_live
from asr_doge.decoding import DecodingConfig
from asr_doge.errors import AudioError
from asr_doge.inference.transcription import Transcriber, load
from tests import speech
from tests.cli.conftest import Command, Terminal

PAUSE = np.zeros(24_000, dtype=np.float32)


@pytest.fixture(scope="module")
def waveform() -> NDArray[np.float32]:
    said = [synthesize(text, Voice(words_per_minute=130)) for text in ("one two three", "nine eight")]
    return np.concatenate([said[0], PAUSE, said[1]])


@pytest.fixture(scope="module")
def nano() -> Transcriber:
    """Cuts recordings as streams are cut."""
    return load("nano", device="cpu", decoding=DecodingConfig(cut_at_pauses=True))


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch, waveform: NDArray[np.float32]) -> Callable[..., None]:
    """Standard input with the waveform as 16-bit samples, and what is appended."""

    def fill(extra: bytes = b"", samples: NDArray[np.float32] = waveform) -> None:
        content = (samples * 32767).astype("<i2").tobytes() + extra
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))

    return fill


def test_a_pipe_prints_a_line_for_each_segment(
    command: Command, pipe: Callable[..., None], nano: Transcriber, waveform: NDArray[np.float32]
) -> None:
    pipe()
    outcome = command("transcribe", "--stream", "-", "--model", "nano", "--device", "cpu")
    assert (outcome.code, outcome.err) == (0, [])
    exact = (waveform * 32767).astype("<i2")
    assert outcome.out == [segment.text for segment in nano.transcribe(exact.astype(np.float32) / 32768).segments]
    assert len(outcome.out) == 2


def test_json_lines_show_every_change(command: Command, pipe: Callable[..., None]) -> None:
    pipe()
    outcome = command("transcribe", "--stream", "-", "--model", "nano", "--format", "jsonl", "--device", "cpu")
    updates = [json.loads(line) for line in outcome.out]
    assert all(list(update) == ["version", "seconds", "finished", "committed", "tentative"] for update in updates)
    assert [update["seconds"] for update in updates] == sorted(update["seconds"] for update in updates)
    assert len([segment for update in updates for segment in update["finished"]]) == 2


@pytest.mark.parametrize("output_format", ["srt", "json"])
def test_a_file_in_passing_is_transcribed_as_ever(
    command: Command, tmp_path: Path, waveform: NDArray[np.float32], output_format: str
) -> None:
    path = speech.write_wav(tmp_path / "a.wav", waveform)
    live, ever = (
        command("transcribe", *extra, path, "--model", "nano", "--format", output_format, "--device", "cpu")
        for extra in (["--stream"], ["--cut_at_pauses", "true"])
    )
    assert live.code == ever.code == 0
    assert "\n".join(live.out).strip() == "\n".join(ever.out).strip()


def test_formats_with_times_follow_the_words_unasked(
    command: Command, tmp_path: Path, waveform: NDArray[np.float32]
) -> None:
    path = speech.write_wav(tmp_path / "a.wav", waveform)
    call = ("transcribe", path, "--model", "nano", "--device", "cpu", "--cut_at_pauses", "true", "--format")
    rows = [line.split() for line in command(*call, "ctm").out]
    assert [row[4] for row in rows] == ["one", "two", "three", "nine", "eight"]
    assert all(0 < float(row[5]) <= 1 for row in rows)  # confidences
    ends = [float(row[2]) + float(row[3]) for row in rows]
    assert float(rows[3][2]) - ends[2] == pytest.approx(1.5, abs=0.15)  # the pause
    assert command(*call, "ctm", "--timestamps", "word").out == command(*call, "ctm").out
    assert all(len(line.split()) == 5 for line in command(*call, "ctm", "--timestamps", "none").out)
    assert '"words": []' in "".join(command(*call, "json").out)


def test_a_stream_that_ends_within_a_sample_is_transcribed_and_told(
    command: Command, pipe: Callable[..., None]
) -> None:
    pipe(b"\x01")
    outcome = command("transcribe", "--stream", "-", "--model", "nano", "--device", "cpu")
    assert (outcome.code, len(outcome.out)) == (2, 2)
    (line,) = outcome.err
    assert "ends in the middle of a sample" in line


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--stream", "a.wav", "b.wav"], "--stream takes one recording"),
        (["--stream", "-", "--output_dir", "out"], "leave --output_dir out"),
        (["--stream", "-", "--stream_rate", "-8000"], "-8000 Hz"),
        (["--stream", "missing.wav"], "missing.wav does not exist"),
        (["--stream", "a.wav", "--stream_rate", "8000"], "--stream_rate is of samples from standard input"),
        (["a.wav", "--output_dir", ""], "--output_dir is empty"),
        (["-"], "needs --stream"),
        (["--stream", "a.wav", "--text", "written"], "--text written needs the whole text"),
        (
            [__file__, "--model", "nano", "--text", "written"],
            "'nano' has no punctuation/config.json: copy that of english",
        ),
        (["a.wav", "--format", "srt,json"], "need --output_dir"),
        (["a.wav", "b.wav", "--format", "srt"], "add --output_dir"),
        (["a.wav", "--format", "docx"], "--format 'docx' is unknown: choose from txt, json"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    command: Command, pipe: Callable[..., None], arguments: list[str], named: str
) -> None:
    pipe(samples=PAUSE)
    outcome = command("transcribe", *arguments, "--model", "nano", "--device", "cpu")
    assert (outcome.code, outcome.out) == (2, [])
    (line,) = outcome.err
    assert line.startswith("error: ")
    assert named in line


def test_on_a_terminal_words_show_before_their_segment_ends(
    nano: Transcriber, waveform: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    print_live(np.split(waveform, range(1600, len(waveform), 1600)), nano, "txt", "nano", None)
    lines = [line.split("\r\x1b[K") for line in terminal.getvalue().split("\n")]
    segments = [segment.text for segment in nano.transcribe(waveform).segments]
    assert [line[-1] for line in lines] == [*segments, ""]  # each line as it stays, and nothing after the last
    assert len(lines[0]) > 3  # it was written over and over while it grew


# a microphone


class Microphone:
    """Stands for sounddevice's input stream: one that has heard a recording already."""

    PortAudioError = OSError
    recording = np.zeros(0, dtype=np.float32)

    def __init__(
        self, samplerate: int, blocksize: int, device: str | None, channels: int, dtype: str, callback: Any
    ) -> None:
        assert (samplerate, channels, dtype) == (16_000, 1, "float32")
        if device == "none":
            raise self.PortAudioError("No input device\nmatching 'none'")
        if device is None and not len(self.recording):
            raise self.PortAudioError("Error querying device -1")
        self.size, self.callback = blocksize, callback

    def __enter__(self) -> "Microphone":
        buffer = np.zeros((self.size, 1), dtype=np.float32)  # one and the same for all, as PortAudio's is
        for start in range(0, len(self.recording) - self.size, self.size):
            buffer[:, 0] = self.recording[start : start + self.size]
            self.callback(buffer, self.size, None, None)
        return self

    def __exit__(self, *_: object) -> None:
        """Closed."""


def sounddevice(recording: NDArray[np.float32]) -> Any:
    stream = type("Stream", (Microphone,), {"recording": recording})
    return SimpleNamespace(InputStream=stream, PortAudioError=Microphone.PortAudioError)


def test_what_a_microphone_hears_is_transcribed(
    nano: Transcriber, waveform: NDArray[np.float32], capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = islice(microphone_blocks(sounddevice(waveform), None, 16_000), 1)  # all that was heard, then Ctrl-C
    assert print_live(blocks, nano, "txt", "nano", None) == 0
    heard = waveform[: (len(waveform) - 1) // 1600 * 1600]
    assert capsys.readouterr().out.splitlines() == [segment.text for segment in nano.transcribe(heard).segments]


def test_ctrl_c_ends_a_stream_as_its_own_end_does(
    nano: Transcriber, waveform: NDArray[np.float32], capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> Any:
        yield waveform
        raise KeyboardInterrupt

    assert print_live(interrupted(), nano, "txt", "nano", None) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_ctrl_c_in_the_middle_of_the_work_loses_nothing(
    nano: Transcriber,
    waveform: NDArray[np.float32],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Most of the time is spent there; here a segment has just ended, and another one has not."""
    recognize = nano.recognize_chunks

    def interrupted(chunks: Any) -> Any:
        monkeypatch.setattr(nano, "recognize_chunks", recognize)
        raise KeyboardInterrupt

    segments = [segment.text for segment in nano.transcribe(waveform).segments]
    monkeypatch.setattr(nano, "recognize_chunks", interrupted)
    assert print_live([waveform], nano, "txt", "nano", None) == 0
    assert capsys.readouterr().out.splitlines() == segments


def test_a_microphone_that_is_not_there_is_one_line() -> None:
    with pytest.raises(AudioError, match=r"microphone 'none' cannot be used .No input device matching 'none'.: choose"):
        next(microphone_blocks(sounddevice(PAUSE), "none", 16_000))


def test_without_any_microphone_it_is_one_line() -> None:
    nothing = np.zeros(0, dtype=np.float32)
    with pytest.raises(AudioError, match=r"the microphone cannot be used .Error querying device -1.: plug one in"):
        next(microphone_blocks(sounddevice(nothing), None, 16_000))


def test_a_microphone_that_is_unplugged_leaves_what_it_heard(
    nano: Transcriber,
    waveform: NDArray[np.float32],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listen, "TIMEOUT_SECONDS", 0.01)
    assert print_live(microphone_blocks(sounddevice(waveform), "desk", 16_000), nano, "txt", "nano", None) == 2
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 2
    assert printed.err.splitlines() == [
        "listening; Ctrl-C ends it",
        "error: microphone 'desk' sends nothing any more: plug it in and start again",
    ]


def test_without_portaudio_it_is_named(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the library raises where the system has none."""
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')\n")
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    outcome = command("listen", "--model", "nano")
    assert (outcome.code, outcome.out) == (2, [])
    assert outcome.err == [
        "error: listen needs PortAudio (PortAudio library not found): install it, as in apt install libportaudio2"
    ]


def test_without_the_extra_it_is_named(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    outcome = command("listen", "--model", "nano")
    assert (outcome.code, outcome.out) == (2, [])
    assert outcome.err == ['error: listen needs the sounddevice library: pip install "asr-doge[listen]"']
