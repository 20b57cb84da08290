"""Any recording becomes one finite mono waveform, and any bad one becomes one clear line."""

import io
import os
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from asr_doge.audio.reading import (
    AUDIO_EXTENSIONS,
    audio_duration,
    find_audio_files,
    pcm_blocks,
    prepare_waveform,
    read_audio,
    read_blocks,
)
from asr_doge.errors import AudioError

SECONDS = 2
RMS = 0.3 / 2**0.5


def tone(rate: int, seconds: float = SECONDS) -> NDArray[np.float32]:
    """440 Hz at an amplitude of 0.3."""
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def assert_is_the_tone(waveform: NDArray[np.float32], rate: int = 16000) -> None:
    assert waveform.dtype == np.float32
    assert waveform.ndim == 1
    # Lossy formats add a little silence at the ends.
    assert waveform.size / rate == pytest.approx(SECONDS, abs=0.11)
    inside = waveform[rate // 2 : -rate // 2]
    assert np.abs(np.fft.rfft(inside)).argmax() * rate / inside.size == pytest.approx(440, abs=2)
    assert inside.std() == pytest.approx(RMS, rel=0.05)


def write_with_ffmpeg(path: Path, codec: str | None, rate: int, layout: str, video_codec: str | None = None) -> None:
    """Write the tone in every channel, two seconds of black picture, or both."""
    with av.open(str(path), "w") as container:
        video = container.add_stream(video_codec, rate=10, width=64, height=64) if video_codec else None
        audio = container.add_stream(codec, rate=rate, layout=layout) if codec else None
        if isinstance(video, av.VideoStream):
            for index in range(10 * SECONDS):
                picture = av.VideoFrame.from_ndarray(np.zeros((96, 64), dtype=np.uint8), format="yuv420p")
                picture.pts, picture.time_base = index, Fraction(1, 10)
                container.mux(video.encode(picture))
            container.mux(video.encode(None))
        if isinstance(audio, av.AudioStream):
            frames = tone_frames(rate, layout, audio.codec_context.frame_size or 1024)
            to_encoder = av.AudioResampler(audio.codec_context.format.name, layout, rate)
            for frame in frames:
                for converted in to_encoder.resample(frame):
                    container.mux(audio.encode(converted))
            container.mux(audio.encode(None))


def tone_frames(rate: int, layout: str, size: int) -> Iterator[av.AudioFrame]:
    for start in range(0, rate * SECONDS, size):
        planes = np.tile(tone(rate)[start : start + size], (av.AudioLayout(layout).nb_channels, 1))
        frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
        frame.rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        yield frame


def write_wav(path: Path, rate: int = 16000) -> bytes:
    soundfile.write(path, tone(rate), rate, subtype="PCM_16")
    return path.read_bytes()


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
    opposite = np.stack([tone(16000), -tone(16000)], axis=1)
    soundfile.write(tmp_path / "opposite.wav", opposite, 16000, subtype="FLOAT")
    assert not read_audio(tmp_path / "opposite.wav").any()


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


# --- what cannot ----------------------------------------------------------------------------------------------------


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
        (cut_m4a, "is not audio that can be decoded", "convert it"),
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


def test_ffmpeg_keeps_its_own_complaints_to_itself(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for build in (cut_m4a, scratched_flac, text_named_wav, video_without_sound):
        with pytest.raises(AudioError):
            read_audio(build(tmp_path))
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


# --- arrays ---------------------------------------------------------------------------------------------------------


@settings(deadline=None)  # the first call imports scipy
@given(
    channels=st.integers(1, 8),
    samples=st.integers(9, 2000),
    from_rate=st.sampled_from([8000, 16000, 44100]),
    channels_first=st.booleans(),
    dtype=st.sampled_from(["uint8", "int16", "int32", "float16", "float32", "float64"]),
)
def test_an_array_of_any_shape_and_type_becomes_mono(
    channels: int, samples: int, from_rate: int, channels_first: bool, dtype: str
) -> None:
    """Half of full scale in every channel is half of full scale, whatever holds it."""
    half = {"uint8": 192, "int16": 2**14, "int32": 2**30}.get(dtype, 0.5)
    array = np.full((channels, samples) if channels_first else (samples, channels), half, dtype=dtype)
    before = array.copy()
    waveform = prepare_waveform(array, from_rate)
    assert waveform.dtype == np.float32
    assert waveform.shape == (-(-samples * 16000 // from_rate),)
    np.testing.assert_array_equal(array, before)
    if from_rate == 16000:
        np.testing.assert_array_equal(waveform, np.float32(0.5))


def test_lists_and_tensors_are_as_good_as_arrays() -> None:
    samples = tone(16000, 0.1)
    for same in (samples.tolist(), torch.from_numpy(samples), torch.from_numpy(samples)[None].requires_grad_()):
        np.testing.assert_array_equal(prepare_waveform(same, 16000), samples)
    coarse = prepare_waveform(torch.from_numpy(samples).bfloat16(), 16000)
    np.testing.assert_allclose(coarse, samples, atol=0.01)
    integers = torch.full((100,), -(2**14), dtype=torch.int16)
    np.testing.assert_array_equal(prepare_waveform(integers, 16000), np.float32(-0.5))


def test_a_view_that_skips_samples_is_read_right() -> None:
    interleaved = np.stack([tone(16000), np.zeros_like(tone(16000))], axis=1).ravel()
    np.testing.assert_array_equal(prepare_waveform(interleaved[::2], 16000), tone(16000))


@pytest.mark.parametrize(
    ("array", "rate", "finding"),
    [
        ([], 16000, "holds no samples"),
        (np.zeros((2, 0)), 16000, "holds no samples"),
        (0.5, 16000, "has 0 axes"),
        (np.zeros((1, 1, 100)), 16000, "has 3 axes"),
        ([[0.1, 0.2], [0.1]], 16000, "different lengths"),
        ([0.1, float("nan")], 16000, "NaN or infinite"),
        ([0.1, float("inf")], 16000, "NaN or infinite"),
        (np.array([[np.inf], [-np.inf]]), 16000, "NaN or infinite"),
        (np.array([1e300]), 16000, "NaN or infinite"),
        ([0, 1000, -1000], 16000, "type int64"),
        (np.zeros(10, dtype=bool), 16000, "type bool"),
        (np.zeros(10, dtype=np.complex64), 16000, "type complex64"),
        (["a.wav"], 16000, "type <U5"),
        (np.array([0.0, 20_000.0]), 16000, "up to 20000: scale them"),
        ([0.1], 0, "sampling rate of 0 Hz"),
    ],
)
def test_a_bad_array_is_named_with_its_fault(array: Any, rate: int, finding: str) -> None:
    with pytest.raises(AudioError, match=f"^microphone .*{finding}"):
        prepare_waveform(array, rate, name="microphone")


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


def test_a_pipe_that_ends_within_a_sample_is_told_after_its_samples() -> None:
    heard: list[NDArray[np.float32]] = []
    with pytest.raises(AudioError, match="ends in the middle of a sample"):
        heard.extend(pcm_blocks(Pipe(b"\x00\x40" * 3 + b"\x01"), 16000))
    assert np.concatenate(heard).tolist() == [0.5, 0.5, 0.5]
    with pytest.raises(AudioError, match="sampling rate of -1 Hz"):
        list(pcm_blocks(Pipe(b""), -1))
