"""A message for users is one line, whatever name a file has."""

import pickle
from pathlib import Path

import pytest

from asr_doge.audio.reading import audio_duration, read_audio
from asr_doge.errors import AudioError, DamagedAudioError, DataError, in_one_line


@pytest.mark.parametrize("content", [None, b"", b"no sound" * 100, b"RIFF"])
def test_a_name_with_line_breaks_is_still_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "two\nlines\u2028and\ta bell\a.wav"
    if content is not None:
        path.write_bytes(content)
    for read in (read_audio, audio_duration):
        with pytest.raises(AudioError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{tmp_path}/two\\nlines\\u2028and\\ta bell\\x07.wav ")
        assert str(caught.value).isprintable()


def test_an_error_is_the_same_in_another_process() -> None:
    error = pickle.loads(pickle.dumps(DamagedAudioError("a\nb\\n is cut")))
    assert type(error) is DamagedAudioError
    assert str(error) == "a\\nb\\n is cut"
    assert str(DataError()) == ""


def test_other_writing_is_left_as_it_is() -> None:
    text = "日本語 ärgerlich\u00a0\u202f\u3000 🐕\u200d"
    assert in_one_line(text) == text
