"""A file that cannot be read gives one clear line, with its name and the remedy."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from asr_doge.audio.reading import audio_duration, read_audio
from asr_doge.errors import AudioError
from tests.audio.odd import Track, write
from tests.audio.tones import tone, write_wav, write_with_ffmpeg


def text_named_wav(folder: Path) -> Path:
    path = folder / "notes.wav"
    path.write_text("these are only words\n" * 100)
    return path


def noise_named_mp3(folder: Path) -> Path:
    path = folder / "noise.mp3"
    path.write_bytes(np.random.default_rng(0).bytes(50_000))
    return path


def headerless_samples(folder: Path) -> Path:
    path = folder / "samples.raw"
    path.write_bytes(write_wav(folder / "whole.wav")[44:])
    return path


def playlist_of_a_real_file(folder: Path) -> Path:
    write_with_ffmpeg(folder / "whole.aac", "aac", 16000, "mono")
    path = folder / "list.m3u8"
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nwhole.aac\n#EXT-X-ENDLIST\n")
    return path


def empty_file(folder: Path) -> Path:
    path = folder / "empty.wav"
    path.touch()
    return path


def no_samples(folder: Path) -> Path:
    path = folder / "silent.wav"
    soundfile.write(path, np.zeros(0, dtype=np.float32), 16000)
    return path


def nan_samples(folder: Path) -> Path:
    path = folder / "nan.wav"
    samples = tone(16000)
    samples[1000] = np.nan
    soundfile.write(path, samples, 16000, subtype="FLOAT")
    return path


def video_without_sound(folder: Path) -> Path:
    path = folder / "mute.mp4"
    write_with_ffmpeg(path, None, 16000, "mono", "mpeg4")
    return path


def cut(ending: str, keep: float, **options: Any) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        path = folder / f"cut.{ending}"
        noise = 0.1 * np.random.default_rng(0).standard_normal(32000)
        soundfile.write(path, noise, 16000, **options)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * keep)])
        return path

    build.__name__ = f"cut_{ending}_{keep}"
    return build


def cut_m4a(folder: Path) -> Path:
    path = folder / "cut.m4a"
    write_with_ffmpeg(path, "aac", 16000, "mono")
    path.write_bytes(path.read_bytes()[:-200])  # MP4 keeps its index at the end
    return path


def scratched_flac(folder: Path) -> Path:
    path = cut("flac", 1.0)(folder)
    stream = bytearray(path.read_bytes())
    middle = len(stream) // 2
    stream[middle : middle + 4000] = bytes(4000)
    path.write_bytes(stream)
    return path


def scratched_mp3(folder: Path) -> Path:
    path = cut("mp3", 1.0)(folder)
    stream = bytearray(path.read_bytes())
    stream[len(stream) // 3 :] = bytes(len(stream) - len(stream) // 3)
    path.write_bytes(stream)
    return path


@pytest.mark.parametrize(
    ("build", "finding", "remedy"),
    [
        (lambda folder: folder / "absent.wav", "does not exist", "check the path"),
        (lambda folder: folder / "absent" / "a.wav", "does not exist", "check the path"),
        (lambda folder: text_named_wav(folder) / "a.wav", "cannot be opened", "check the path"),
        (lambda folder: folder, "is a folder", "find_audio_files"),
        (empty_file, "is empty (0 bytes)", "re-copy"),
        (text_named_wav, "is not audio that can be decoded", "convert it"),
        (noise_named_mp3, "is not audio that can be decoded", "convert it"),
        (headerless_samples, "is not audio that can be decoded", "convert it"),
        (playlist_of_a_real_file, "is not audio that can be decoded", "convert it"),
        (cut_m4a, "is truncated or corrupt: 200 bytes are missing at its end", "re-copy"),
        (video_without_sound, "has no audio track", "with sound"),
        (no_samples, "holds no samples", "export it again"),
        (nan_samples, "contains NaN", "export it again"),
        (cut("wav", 0.5), "its header promises 2.00 s, but it holds 1.00 s", "re-copy"),
        (cut("flac", 0.5), "is truncated or corrupt: ", "re-copy"),
        (cut("flac", 0.95), "is truncated or corrupt: ", "re-copy"),
        (cut("mp3", 0.5), "is truncated or corrupt: ", "re-copy"),
        (cut("au", 0.5), "its header promises 2.00 s, but it holds 1.00 s", "re-copy"),
        (cut("aiff", 0.5), "is truncated or corrupt: ", "re-copy"),
        (scratched_flac, "is truncated or corrupt: ", "re-copy"),
        (scratched_mp3, "is truncated or corrupt: ", "re-copy"),
    ],
)
def test_a_bad_file_gives_one_line_with_its_name_and_the_remedy(
    tmp_path: Path, build: Callable[[Path], Path], finding: str, remedy: str
) -> None:
    path = build(tmp_path)
    with pytest.raises(AudioError) as caught:
        read_audio(path)
    message = str(caught.value)
    assert str(path) in message
    assert finding in message
    assert remedy in message
    assert "\n" not in message


@pytest.mark.parametrize("build", [empty_file, text_named_wav, playlist_of_a_real_file, video_without_sound, cut_m4a])
def test_the_duration_of_a_bad_file_is_an_error_too(tmp_path: Path, build: Callable[[Path], Path]) -> None:
    with pytest.raises(AudioError, match=build(tmp_path).name):
        audio_duration(build(tmp_path))


@contextmanager
def without_privileges() -> Iterator[None]:
    """The superuser may read everything; act as somebody else where the tests run as the superuser."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_of_somebody_else_names_the_permissions(tmp_path: Path) -> None:
    path = tmp_path / "private.wav"
    write_wav(path)
    path.chmod(0)
    with without_privileges(), pytest.raises(AudioError, match=r"private\.wav .*permission"):
        read_audio(path)


def damaged_tags(folder: Path) -> bytes:
    """An MP3 behind an ID3v2.3 tag whose comment has a language and no text."""
    soundfile.write(folder / "plain.mp3", tone(16000), 16000)
    comment = b"COMM" + (4).to_bytes(4, "big") + bytes(3) + b"eng"
    return b"ID3\x03\x00\x00" + bytes([0, 0, 1, 0]) + comment.ljust(128, b"\0") + (folder / "plain.mp3").read_bytes()


def damaged_mp3_in_wav(folder: Path) -> bytes:
    content = bytearray(write(folder / "mp3.wav", [Track("libmp3lame", [(0, 440, 2)], 16_000)]).read_bytes())
    content[1000::97] = bytes(byte ^ 0xFF for byte in content[1000::97])
    return bytes(content)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mp3_in.wav", damaged_mp3_in_wav),
        ("tags.mp3", damaged_tags),
        ("tags.wav", damaged_tags),
        ("words.mp3", lambda _: b"these are only words\n" * 100),
        ("noise.mp3", lambda _: np.random.default_rng(0).bytes(20_000)),
        ("headers.mp3", lambda _: b"\xff\xfb\x90\x00" * 2000),
        ("headers", lambda _: b"\xff\xfb\x90\x00" * 2000),
        ("short.mp3", lambda folder: damaged_tags(folder)[138:438]),
        ("only_a_tag.mp3", lambda folder: damaged_tags(folder)[:138]),
        ("words_behind_a_tag.mp3", lambda folder: damaged_tags(folder)[:138] + b"these are only words\n" * 100),
    ],
)
def test_decoders_keep_what_they_think_of_an_mp3_to_themselves(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, content: Callable[[Path], bytes]
) -> None:
    """libsndfile's decoder of MP3 writes to stderr, past every setting of Python's."""
    path = tmp_path / name
    path.write_bytes(content(tmp_path))
    for read in (read_audio, audio_duration):
        with suppress(AudioError):
            read(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "FLAC"])
def test_a_tag_of_mp3_before_another_format_is_passed_over(tmp_path: Path, kind: str) -> None:
    soundfile.write(tmp_path / "plain", tone(16000), 16000, format=kind)
    path = tmp_path / "tagged"
    path.write_bytes(damaged_tags(tmp_path)[:138] + (tmp_path / "plain").read_bytes())
    np.testing.assert_array_equal(read_audio(path), read_audio(tmp_path / "plain"))
    assert audio_duration(path) == 2


@pytest.mark.parametrize("ending", ["au", "snd", "gsm", "vox", "vox6", "raw", "mp3"])
def test_an_extension_makes_no_sound_of_a_text(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"words.{ending}"
    path.write_text("these are only words\n" * 1000)
    for read in (read_audio, audio_duration):
        with pytest.raises(AudioError, match="is not audio that can be decoded"):
            read(path)


def test_ffmpeg_keeps_its_own_complaints_to_itself(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for build in (cut_m4a, scratched_flac, text_named_wav, video_without_sound):
        with pytest.raises(AudioError):
            read_audio(build(tmp_path))
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""
