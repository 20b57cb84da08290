"""Whatever the decoders read is found in a folder, and what is passed over is counted."""

import os
from pathlib import Path

import av
import pytest

from asr_doge.audio.containers import FFMPEG_FORMATS
from asr_doge.audio.folders import AUDIO_EXTENSIONS, find_audio_files, search_folder
from asr_doge.errors import AudioError
from tests.audio.test_unreadable import without_privileges

NO_SOUND = {"avif", "heic", "heif", "ism", "mks", "mj2", "psp"}
"""Endings that FFmpeg lists for pictures, subtitles and manifests."""


@pytest.mark.parametrize("name", FFMPEG_FORMATS)
def test_every_ending_that_ffmpeg_names_for_an_allowed_format_is_known(name: str) -> None:
    endings = {f".{ending}" for ending in av.format.ContainerFormat(name, "r").extensions - NO_SOUND}
    assert endings <= AUDIO_EXTENSIONS


@pytest.mark.parametrize(
    "ending",
    ["wmv", "ts", "mp2", "ac3", "tta", "dts", "rf64", "voc", "bwf", "asf", "vob", "m2ts", "3g2", "spx", "weba"],
)
def test_endings_that_people_have(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"A.{ending.upper()}"
    path.write_bytes(b"G" + bytes(187) + b"G" + bytes(187) + b"G")
    assert find_audio_files(tmp_path) == [path]


def test_typescript_is_no_transport_stream(tmp_path: Path) -> None:
    (tmp_path / "main.ts").write_text("Great code\n" * 100)
    with pytest.raises(AudioError, match="passed over: 1 of other types"):
        find_audio_files(tmp_path)


def test_links_are_followed_and_each_folder_is_searched_once(tmp_path: Path) -> None:
    for name in ("here/a.wav", "here/b.txt", "there/deep/c.wav", "here/.hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    here = tmp_path / "here"
    (here / "link").symlink_to(tmp_path / "there")
    (here / "again").symlink_to(tmp_path / "there")
    (here / "loop").symlink_to(here)
    (here / "gone.wav").symlink_to(tmp_path / "nothing.wav")
    os.mkfifo(here / "pipe.wav")
    search = search_folder(here)
    assert search.paths == [here / "a.wav", here / "again" / "deep" / "c.wav", here / "gone.wav"]
    assert search.note == (
        f"{here}: 3 recordings found; passed over: 1 hidden, 2 links to folders that were searched already,"
        " 1 of other types, 1 pipes, sockets or devices"
    )


def test_a_folder_that_may_not_be_read_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(0o755)
    (tmp_path / "a.wav").touch()
    (tmp_path / "private").mkdir(mode=0)
    with without_privileges():
        assert find_audio_files(tmp_path) == [tmp_path / "a.wav"]
    assert "1 folders that may not be read" in caplog.text


def test_nothing_passed_over_is_no_note(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    assert search_folder(tmp_path).note is None
