"""What is cut or damaged says so, after all that is there was given."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from asr_doge.audio.joined_files import parts_of
from asr_doge.audio.pcm import flac_seconds
from asr_doge.audio.reading import audio_duration, read_blocks
from asr_doge.errors import DamagedAudioError
from tests.audio.odd import Track, write

SECONDS = 4.0


def noise() -> NDArray[np.float64]:
    return np.random.default_rng(0).uniform(-0.3, 0.3, round(16_000 * SECONDS))


def by_libsndfile(ending: str, **options: str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        soundfile.write(folder / f"whole.{ending}", noise(), 16_000, **options)
        return folder / f"whole.{ending}"

    return build


def by_ffmpeg(ending: str, codec: str, **options: str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        track = Track(codec, [(0, 440, SECONDS)])
        return write(folder / f"whole.{ending}", [track], container_options=options)

    return build


WHOLE = {
    "wav": by_libsndfile("wav"),
    "rf64": by_libsndfile("rf64", format="RF64"),
    "w64": by_libsndfile("w64"),
    "aiff": by_libsndfile("aiff"),
    "au": by_libsndfile("au"),
    "caf": by_libsndfile("caf"),
    "voc": by_libsndfile("voc"),
    "voc, in blocks": by_ffmpeg("voc", "pcm_s16le"),
    "flac": by_libsndfile("flac"),
    "mp3": by_libsndfile("mp3"),
    "ogg": by_libsndfile("ogg"),
    "opus": by_libsndfile("opus", format="OGG", subtype="OPUS"),
    "webm": by_ffmpeg("webm", "libopus"),
    "webm, live": by_ffmpeg("webm", "libopus", live="1"),
    "mka": by_ffmpeg("mka", "libopus"),
    "mkv": by_ffmpeg("mkv", "flac"),
    "mp4, index first": by_ffmpeg("mp4", "aac", movflags="faststart"),
    "mp4, fragments": by_ffmpeg("mp4", "aac", movflags="frag_keyframe+empty_moov", frag_duration="500000"),
    "avi": by_ffmpeg("avi", "mp2"),
    "ts": by_ffmpeg("ts", "aac"),
    "flv": by_ffmpeg("flv", "aac"),
}


@pytest.mark.parametrize("kind", sorted(WHOLE))
def test_a_cut_recording_is_told_after_what_is_there(tmp_path: Path, kind: str) -> None:
    path = WHOLE[kind](tmp_path)
    list(read_blocks(path))
    whole = path.read_bytes()
    cut = tmp_path / f"cut{path.suffix}"
    for share in (0.5, 0.8):
        cut.write_bytes(whole[: round(len(whole) * share) // 2 * 2 + 1])
        heard: list[int] = []
        with pytest.raises(DamagedAudioError, match=rf"cut\{path.suffix} is truncated or corrupt: .*; re-copy"):
            heard.extend(len(block) for block in read_blocks(cut))
        # A page of Ogg, which counts as a whole, holds up to a second or so.
        assert share * SECONDS - 1.3 < sum(heard) / 16_000 < share * SECONDS + 0.3
        with pytest.raises(DamagedAudioError):
            audio_duration(cut)


@pytest.mark.parametrize("kind", ["ogg", "opus", "flac", "mp3", "webm", "mka", "mkv"])
def test_a_scratch_is_told_and_the_rest_is_read(tmp_path: Path, kind: str) -> None:
    path = WHOLE[kind](tmp_path)
    stream = bytearray(path.read_bytes())
    size = max(len(stream) // 10, 2100)
    stream[len(stream) // 2 : len(stream) // 2 + size] = bytes(size)
    path.write_bytes(stream)
    heard: list[int] = []
    with pytest.raises(DamagedAudioError):
        heard.extend(len(block) for block in read_blocks(path))
    assert sum(heard) / 16_000 > 0.4 * SECONDS


@pytest.mark.parametrize("kind", ["ogg", "opus", "flac"])
def test_one_wrong_bit_breaks_a_checksum(tmp_path: Path, kind: str) -> None:
    path = WHOLE[kind](tmp_path)
    stream = bytearray(path.read_bytes())
    stream[len(stream) * 2 // 3] ^= 1
    path.write_bytes(stream)
    with pytest.raises(DamagedAudioError):
        list(read_blocks(path))


@pytest.mark.parametrize("missing", [1, 3, 40, 2000])
def test_the_length_of_a_flac_is_believed_only_if_its_last_frame_is_whole(tmp_path: Path, missing: int) -> None:
    whole = WHOLE["flac"](tmp_path).read_bytes()
    path = tmp_path / "cut.flac"
    path.write_bytes(whole[:-missing])
    assert flac_seconds(path, parts_of(path)[0]) is None
    for before, behind in ((b"", b""), (b"ID3\x04" + bytes(5) + b"\x0a" + bytes(10), b""), (b"", b"TAG" + bytes(125))):
        path.write_bytes(before + whole + behind)
        assert flac_seconds(path, parts_of(path)[0]) == audio_duration(path) == SECONDS
