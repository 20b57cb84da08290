"""Any recording becomes one finite mono waveform, at once or block by block."""

import io
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from asr_doge.audio.arrays import prepare_waveform
from asr_doge.audio.folders import AUDIO_EXTENSIONS, find_audio_files
from asr_doge.audio.pcm import pcm_blocks
from asr_doge.audio.reading import audio_duration, read_audio, read_blocks
from asr_doge.errors import AudioError
from tests.audio.tones import SECONDS, assert_is_the_tone, tone, write_wav, write_with_ffmpeg

# --- what can be read -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "subtype", "rate", "channels"),
    [
        ("wav", "PCM_16", 16000, 1),
        ("wav", "PCM_24", 44100, 2),
        ("wav", "PCM_U8", 8000, 1),
        ("wav", "FLOAT", 48000, 1),
        ("wav", "DOUBLE", 16000, 8),
        ("wav", "ULAW", 8000, 1),
        ("wav", "IMA_ADPCM", 16000, 1),
        ("flac", "PCM_24", 96000, 2),
        ("mp3", "MPEG_LAYER_III", 8000, 2),
        ("mp3", "MPEG_LAYER_III", 44100, 1),
        ("ogg", "VORBIS", 22050, 2),
        ("opus", "OPUS", 16000, 1),
        ("opus", "OPUS", 48000, 2),
        ("aiff", "PCM_16", 11025, 1),
        ("au", "PCM_16", 16000, 1),
        ("caf", "PCM_32", 16000, 2),
        ("w64", "FLOAT", 16000, 1),
    ],
)
def test_every_usual_format_gives_the_same_waveform(
    tmp_path: Path, ending: str, subtype: str, rate: int, channels: int
) -> None:
    path = tmp_path / f"tone.{ending}"
    container = {"opus": "OGG"}.get(ending, ending.upper())
    soundfile.write(path, np.tile(tone(rate)[:, None], channels), rate, subtype=subtype, format=container)
    assert_is_the_tone(read_audio(path))
    assert_is_the_tone(read_audio(str(path), 8000), 8000)
    assert audio_duration(path) == pytest.approx(SECONDS, abs=0.11)
    assert path.suffix in AUDIO_EXTENSIONS


@pytest.mark.parametrize(
    ("ending", "codec", "rate", "layout", "video_codec"),
    [
        ("m4a", "aac", 16000, "mono", None),
        ("m4a", "alac", 44100, "stereo", None),
        ("aac", "aac", 44100, "stereo", None),
        ("mp4", "aac", 44100, "stereo", "mpeg4"),
        ("mov", "pcm_s16le", 16000, "mono", "mpeg4"),
        ("webm", "libopus", 48000, "mono", None),
        ("webm", "libopus", 48000, "stereo", "libvpx"),
        ("mkv", "flac", 16000, "5.1", "mpeg4"),
        ("avi", "libmp3lame", 44100, "stereo", "mpeg4"),
        ("wv", "wavpack", 16000, "mono", None),
    ],
)
def test_what_only_ffmpeg_reads_gives_the_same_waveform(
    tmp_path: Path, ending: str, codec: str, rate: int, layout: str, video_codec: str | None
) -> None:
    path = tmp_path / f"tone.{ending}"
    write_with_ffmpeg(path, codec, rate, layout, video_codec)
    assert_is_the_tone(read_audio(path))
    assert audio_duration(path) == pytest.approx(SECONDS, abs=0.11)
    assert path.suffix in AUDIO_EXTENSIONS


def test_an_mp3_without_a_length_in_its_header_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "tone.mp3"
    write_with_ffmpeg(path, "libmp3lame", 16000, "stereo")
    stream = path.read_bytes()
    first_frame = stream.index(b"\xff\xf3")  # behind the tags
    second_frame = stream.index(
        stream[first_frame : first_frame + 2], first_frame + 4
    )  # behind the frame with the length
    path.write_bytes(stream[second_frame:])
    assert_is_the_tone(read_audio(path))


def test_tags_that_are_not_utf_8_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "tone.mkv"
    write_with_ffmpeg(path, "flac", 16000, "mono")
    container = path.read_bytes()
    assert b"Lavf" in container  # the name of the program that wrote it
    path.write_bytes(container.replace(b"Lavf", b"\xe9\xff\xfe\xe8"))
    assert_is_the_tone(read_audio(path))


def test_the_channels_are_averaged(tmp_path: Path) -> None:
    levels = np.linspace(-0.3, 0.6, 8, dtype=np.float32)
    soundfile.write(tmp_path / "eight.wav", np.tile(levels, (1600, 1)), 16000, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "eight.wav"), levels.mean(), atol=1e-6)


def test_samples_come_exactly_as_written_beyond_one_block_and_full_scale(tmp_path: Path) -> None:
    written = np.random.default_rng(0).uniform(-2, 2, 200_001).astype(np.float32)
    soundfile.write(tmp_path / "hot.wav", written, 16000, subtype="FLOAT")
    np.testing.assert_array_equal(read_audio(tmp_path / "hot.wav"), written)


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    for name in ("flac in disguise.mp3", "naïve 音.flac", "no ending", "samples.raw"):
        soundfile.write(tmp_path / name, tone(16000), 16000, format="FLAC")
        assert_is_the_tone(read_audio(tmp_path / name))
        assert audio_duration(tmp_path / name) == SECONDS


@pytest.mark.parametrize("stated", [0, 0xFFFFFFFF, 0x7FFFFFFF])
def test_a_wav_from_a_pipe_is_read_to_its_end(tmp_path: Path, stated: int) -> None:
    path = tmp_path / "piped.wav"
    whole = write_wav(path)
    path.write_bytes(whole[:40] + struct.pack("<I", stated) + whole[44:])
    assert_is_the_tone(read_audio(path))
    assert audio_duration(path) == pytest.approx(SECONDS, abs=0.01)


def test_a_flac_from_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "piped.flac"
    soundfile.write(path, tone(16000), 16000)
    stream = bytearray(path.read_bytes())
    stream[21] &= 0xF0  # the 36 bits of STREAMINFO that count the samples
    stream[22:26] = bytes(4)
    path.write_bytes(stream)
    assert_is_the_tone(read_audio(path))
    assert audio_duration(path) == pytest.approx(SECONDS, abs=0.01)


def test_a_recording_of_many_channels_is_held_once(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    frames = 1_500_000
    soundfile.write(path, np.zeros((frames, 8), dtype=np.int16), 16000)
    read_audio(path)  # imports are not the recording's memory
    tracemalloc.start()
    try:
        read_audio(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * 4 * frames + 8_000_000


def test_the_room_opens_without_loading_an_audio_library() -> None:
    script = "import sys, asr_doge.audio.reading; print({'scipy', 'soundfile', 'av'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- folders --------------------------------------------------------------------------------------------------------


def test_a_folder_lists_its_recordings_sorted_without_hidden_ones(tmp_path: Path) -> None:
    names = ["b.wav", "a/z.FLAC", "a/b/c.m4a", "a.mp3", "notes.txt", "._b.wav", ".cache/d.wav", "a/.hidden.ogg"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    wanted = sorted(tmp_path / name for name in names[:4])
    assert find_audio_files(tmp_path) == wanted
    assert find_audio_files(str(tmp_path)) == wanted


def test_a_folder_without_recordings_says_what_would_count(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(AudioError, match=r"holds no recordings.*\.flac"):
        find_audio_files(tmp_path)
    with pytest.raises(AudioError, match="does not exist"):
        find_audio_files(tmp_path / "absent")
    with pytest.raises(AudioError, match="is a file, not a folder"):
        find_audio_files(tmp_path / "notes.txt")


# --- block by block -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "rate"), [("a.wav", 16000), ("a.flac", 44100), ("a.mp3", 22050)])
def test_blocks_join_up_to_the_recording(tmp_path: Path, name: str, rate: int) -> None:
    soundfile.write(tmp_path / name, np.tile(tone(rate, 10)[:, None], 2), rate)
    blocks = list(read_blocks(tmp_path / name))
    assert len(blocks) > 1
    assert all(block.size and block.dtype == np.float32 for block in blocks)
    np.testing.assert_array_equal(np.concatenate(blocks), read_audio(tmp_path / name))


def test_what_is_wrong_further_on_shows_when_it_is_reached(tmp_path: Path) -> None:
    path = tmp_path / "late.wav"
    samples = tone(16000, 20)
    samples[-5] = np.nan
    soundfile.write(path, samples, 16000, subtype="FLOAT")
    blocks = read_blocks(path)
    assert next(blocks).size
    with pytest.raises(AudioError, match=r"late.wav contains NaN"):
        list(blocks)


@pytest.mark.parametrize("rate", [1, 100, 5_000_000])
def test_a_rate_that_no_recording_has_is_named(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "lie.wav"
    whole = bytearray(write_wav(path))
    whole[24:28] = struct.pack("<I", rate)
    path.write_bytes(whole)
    with pytest.raises(AudioError, match=rf"lie.wav states a sampling rate of {rate} Hz, .*: correct its header"):
        read_audio(path)


# --- samples without a header ---------------------------------------------------------------------------------------


class Pipe(io.BytesIO):
    """Gives a few bytes at a time, as pipes do, and not always whole samples."""

    def read1(self, size: int | None = -1) -> bytes:
        return self.read(min(size or 0, 4097))


@pytest.mark.parametrize("rate", [16000, 8000])
def test_samples_from_a_pipe(rate: int) -> None:
    integers = (tone(rate) * 32767).astype("<i2")
    waveform = np.concatenate(list(pcm_blocks(Pipe(integers.tobytes()), rate)))
    np.testing.assert_allclose(waveform, prepare_waveform(integers.astype(np.int16), rate), atol=1e-6)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "AIFF"])
def test_a_file_is_not_taken_for_samples(tmp_path: Path, kind: str) -> None:
    """Its samples may have another rate: digits in it became other digits."""
    soundfile.write(tmp_path / "file", tone(8000), 8000, format=kind)
    with pytest.raises(AudioError, match="pass the file by its name"):
        list(pcm_blocks(Pipe((tmp_path / "file").read_bytes()), 16000))


def test_a_pipe_that_ends_within_a_sample_is_told_after_its_samples() -> None:
    heard: list[NDArray[np.float32]] = []
    with pytest.raises(AudioError, match="ends in the middle of a sample"):
        heard.extend(pcm_blocks(Pipe(b"\x00\x40" * 3 + b"\x01"), 16000))
    assert np.concatenate(heard).tolist() == [0.5, 0.5, 0.5]
    with pytest.raises(AudioError, match="sampling rate of -1 Hz"):
        list(pcm_blocks(Pipe(b""), -1))
