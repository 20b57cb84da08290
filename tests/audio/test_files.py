"""Pipes are read like files, or refused in a line; nothing waits for ever."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from asr_doge.audio import files
from asr_doge.audio.reading import audio_duration, read_audio
from asr_doge.errors import AudioError
from tests.audio.tones import assert_is_the_tone, write_wav

READ = "import sys; from asr_doge.audio.reading import read_audio; print(len(read_audio(sys.argv[1])))"


def test_a_fifo_is_read_to_its_end(tmp_path: Path) -> None:
    sound = write_wav(tmp_path / "a.wav")
    fifo = tmp_path / "fifo.wav"
    os.mkfifo(fifo)
    with pytest.raises(AudioError, match="is a pipe, which can be read only once"):
        audio_duration(fifo)
    writer = threading.Thread(target=fifo.write_bytes, args=(sound,))
    writer.start()
    assert_is_the_tone(read_audio(fifo))
    writer.join()


def test_standard_input_is_read_as_a_file(tmp_path: Path) -> None:
    sound = write_wav(tmp_path / "a.wav")
    done = subprocess.run([sys.executable, "-c", READ, "/dev/stdin"], input=sound, capture_output=True, check=False)
    assert (done.stdout.strip(), done.stderr) == (b"32000", b"")
    with (tmp_path / "a.wav").open("rb") as file:
        done = subprocess.run([sys.executable, "-c", READ, "/dev/stdin"], stdin=file, capture_output=True, check=False)
    assert done.stdout.strip() == b"32000"


def test_a_descriptor_as_the_shell_passes_it(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    sound = write_wav(tmp_path / "a.wav")

    def send() -> None:
        with os.fdopen(write_end, "wb") as file:
            file.write(sound)

    writer = threading.Thread(target=send)
    writer.start()
    assert_is_the_tone(read_audio(f"/dev/fd/{read_end}"))
    writer.join()
    with pytest.raises(AudioError, match="is a pipe that sent nothing"):
        read_audio(f"/dev/fd/{read_end}")
    os.close(read_end)


def test_a_pipe_that_falls_silent_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PIPE_SECONDS", 0.3)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(AudioError, match="fifo is a pipe that sent nothing for 0 s: check the command"):
        read_audio(fifo)
    read_end, write_end = os.pipe()
    os.write(write_end, b"RIFF")
    with pytest.raises(AudioError, match="sent nothing for 0 s"):
        read_audio(f"/dev/fd/{read_end}")
    os.close(write_end)
    os.close(read_end)


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero"])
def test_a_device_is_no_recording(path: str) -> None:
    with pytest.raises(AudioError, match="is a device or terminal: pass a file or a pipe"):
        read_audio(path)
