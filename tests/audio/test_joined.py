"""Recordings that were joined into one file are read to the last, whatever their rates and channels."""

import struct
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from asr_doge.audio.file_parts import Part
from asr_doge.audio.joined_files import parts_of
from asr_doge.audio.reading import audio_duration, count_channels, read_audio
from asr_doge.errors import AudioError, DamagedAudioError
from tests.audio.odd import RATE, Track, join, pitch, tone, write
from tests.audio.tones import assert_is_the_tone
from tests.audio.tones import tone as usual_tone

CODECS = {
    "mp3": "libmp3lame",
    "mp2": "mp2",
    "ogg": "vorbis",
    "opus": "libopus",
    "oga": "flac",
    "flac": "flac",
    "aac": "aac",
    "amr": "libopencore_amrnb",
    "ac3": "ac3",
    "m4a": "aac",
    "mov": "pcm_s16le",
    "3gp": "aac",
    "mka": "libopus",
    "mkv": "flac",
    "webm": "libopus",
    "ts": "aac",
    "flv": "aac",
    "wma": "wmav2",
    "avi": "mp2",
    "wv": "wavpack",
    "tta": "tta",
    "nut": "mp2",
    "wav": "pcm_s16le",
    "w64": "pcm_s16le",
    "aiff": "pcm_s16be",
    "au": "pcm_s16be",
    "caf": "pcm_s16be",
    "voc": "pcm_s16le",
    "sph": "sphere",
}


RATED = {"b": "48000"}
ONLY_AMR = 8_000, {"b": "12200"}
"""The rate and the bit rate that its encoder takes."""


@pytest.mark.parametrize("other", [(44_100, "stereo"), (16_000, "mono")])
@pytest.mark.parametrize("ending", sorted(CODECS))
def test_what_was_joined_is_read_to_the_last(tmp_path: Path, ending: str, other: tuple[int, str]) -> None:
    """A first part of 44.1 kHz stereo, and a second that may differ from it."""
    rates = {"opus": (48_000, 48_000), "mka": (48_000, 48_000), "webm": (48_000, 48_000)}
    first_rate, second_rate = rates.get(ending, (44_100, other[0]))
    if ending == "ac3" and second_rate == 16_000:
        second_rate = 32_000  # it has no lower
    layouts, options = ("stereo", other[1]), RATED
    if ending == "amr":
        first_rate, options = ONLY_AMR
        second_rate, layouts = first_rate, ("mono", "mono")
    first = write(tmp_path / f"a.{ending}", [Track(CODECS[ending], [(0, 440, 1.5)], first_rate, layouts[0], options)])
    second = write(tmp_path / f"b.{ending}", [Track(CODECS[ending], [(0, 880, 1)], second_rate, layouts[1], options)])
    path = join(tmp_path / f"joined.{ending}", first, second)
    waveform = read_audio(path)
    # Encoders add up to two frames to each part: 2 * 2 * 1152 samples at 16 kHz in the worst case.
    assert 2.45 < len(waveform) / 16_000 < 2.5 + 0.29
    assert [pitch(waveform, moment) for moment in (0.7, 1.4)] == pytest.approx([440, 440], abs=10)
    assert [pitch(waveform, len(waveform) / 16_000 - left) for left in (0.75, 0.3)] == pytest.approx([880, 880], abs=10)
    assert audio_duration(path) == pytest.approx(len(waveform) / 16_000, abs=1e-3)


def test_headers_of_blocks_within_a_file_are_no_sound(tmp_path: Path) -> None:
    """FFmpeg writes a Creative Voice file in many blocks, whose headers were read as samples: a click each."""
    paths = [write(tmp_path / f"a.{ending}", [Track("pcm_s16le", [(0, 440, 1.5)], RATE)]) for ending in ("wav", "voc")]
    plain, in_blocks = map(read_audio, paths)
    np.testing.assert_array_equal(in_blocks[: len(plain)], plain)


@pytest.mark.parametrize("size", [0, 20, 25])
def test_a_header_of_no_size_comes_to_an_end(tmp_path: Path, size: int) -> None:
    """The header of a Creative Voice file states its own size; one of less than 26 bytes led back to where it began."""
    path = tmp_path / "a.voc"
    path.write_bytes(b"Creative Voice File\x1a" + size.to_bytes(2, "little") + b"\x0a\x01\x29\x11" + bytes(8))
    with pytest.raises(AudioError):
        read_audio(path)


def test_three_parts_behind_tags(tmp_path: Path) -> None:
    """ID3 tags stand before each part of a radio stream, and may hold what looks like frames."""
    parts = []
    for number, frequency in enumerate((440, 660, 880)):
        plain = write(
            tmp_path / f"{number}.mp3",
            [Track("libmp3lame", [(0, frequency, 1)], 22_050)],
            container_options={"write_xing": "0", "id3v2_version": "0"},
        )
        picture = plain.read_bytes()[:3000]  # frames, which are no sound here
        size = bytes(len(picture) >> shift & 0x7F for shift in (21, 14, 7, 0))
        tagged = tmp_path / f"tagged{number}.mp3"
        tagged.write_bytes(b"ID3\x04\x00\x00" + size + picture + plain.read_bytes())
        parts.append(tagged)
    waveform = read_audio(join(tmp_path / "all.mp3", *parts))
    assert [round(pitch(waveform, moment) / 220) for moment in (0.5, 1.6, 2.7)] == [2, 3, 4]
    assert len(waveform) / 16_000 == pytest.approx(3, abs=0.25)


@pytest.mark.parametrize("mode", [{}, {"q": "7"}, {"b": "8000"}])
def test_an_mp3_that_states_no_length_is_read_whole(tmp_path: Path, mode: dict[str, str]) -> None:
    """Silence takes few bits, and so the bit rate of the start says nothing of the rest."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16_000)
    sound = np.concatenate([noise, np.zeros(16_000 * 9), tone(440, 1, 16_000)])
    soundfile.write(tmp_path / "a.wav", sound, 16_000)
    path = tmp_path / "a.mp3"
    with av.open(str(tmp_path / "a.wav")) as source, av.open(str(path), "w", options={"write_xing": "0"}) as target:
        stream = target.add_stream("libmp3lame", rate=16_000, options=mode)
        for frame in source.decode(audio=0):
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    waveform = read_audio(path)
    assert len(waveform) / 16_000 == pytest.approx(11, abs=0.2)
    assert pitch(waveform, 10.6) == pytest.approx(440, abs=5)
    assert audio_duration(path) == pytest.approx(len(waveform) / 16_000)


def test_a_part_that_is_cut_is_told_and_the_rest_is_read(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.ogg", np.random.default_rng(0).uniform(-0.3, 0.3, 64_000), 16_000)
    first = tmp_path / "a.ogg"
    second = write(tmp_path / "b.ogg", [Track("vorbis", [(0, 880, 1)])])
    first.write_bytes(first.read_bytes()[:-700])
    path = join(tmp_path / "joined.ogg", first, second)
    with pytest.raises(DamagedAudioError, match=r"joined\.ogg is truncated or corrupt: a (page|checksum) "):
        read_audio(path)


def test_parts_of_wavs_whose_lengths_are_unknown_or_odd(tmp_path: Path) -> None:
    """What a pipe wrote states no length, and chunks of odd length are padded by some writers only."""
    soundfile.write(tmp_path / "a.wav", tone(440, 1, 8000)[:-1], 8000, subtype="PCM_U8")
    soundfile.write(tmp_path / "b.wav", tone(880, 1, 8000), 8000, subtype="PCM_16")
    odd, even = (tmp_path / "a.wav").read_bytes(), (tmp_path / "b.wav").read_bytes()
    samples = len(tone(440, 1, 8000)) - 1
    header = odd.index(b"data") + 8
    unknown = odd[: header - 4] + struct.pack("<I", 0xFFFFFFFF) + odd[header : header + samples]
    for number, first in enumerate((odd[: header + samples] + b"\x00", odd[: header + samples], unknown)):
        path = tmp_path / f"{number}.wav"
        path.write_bytes(first + even)
        waveform = read_audio(path)
        assert len(waveform) / 16_000 == pytest.approx(2, abs=0.01)
        assert pitch(waveform, 1.5) == pytest.approx(880, abs=5)


def test_mp3_within_wav_is_read_to_its_last_packet(tmp_path: Path) -> None:
    """Its header rounds its length up, and libsndfile's decoder of it speaks for itself."""
    first = write(tmp_path / "a.wav", [Track("libmp3lame", [(0, 440, 1.5)], 16_000)])
    second = write(tmp_path / "b.wav", [Track("pcm_s16le", [(0, 880, 1)], 16_000)])
    assert audio_duration(first) == pytest.approx(len(read_audio(first)) / 16_000)
    assert audio_duration(first) == pytest.approx(1.5, abs=0.15)
    waveform = read_audio(join(tmp_path / "c.wav", first, second))
    assert [pitch(waveform, moment) for moment in (0.7, 1.4)] == pytest.approx([440, 440], abs=10)
    assert pitch(waveform, len(waveform) / 16_000 - 0.5) == pytest.approx(880, abs=10)
    cut = tmp_path / "cut.wav"
    cut.write_bytes(first.read_bytes()[:-2000])
    for read in (read_audio, audio_duration):
        with pytest.raises(DamagedAudioError, match="of its samples are missing at its end"):
            read(cut)


def test_what_is_not_joined_is_one_part(tmp_path: Path) -> None:
    for ending, codec in CODECS.items():
        rate, options = ONLY_AMR if ending == "amr" else (48_000, RATED)
        path = write(tmp_path / f"a.{ending}", [Track(codec, [(0, 440, 1)], rate, options=options)])
        (part,) = parts_of(path)
        assert (part.start, part.end, part.fault, part.stated) == (0, path.stat().st_size, None, 1.0), ending
    path.write_bytes(b"no recording at all")
    assert parts_of(path) == [Part(0, 19)]


def test_channels_are_counted_over_all_parts(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", usual_tone(16_000), 16_000)
    soundfile.write(tmp_path / "b.wav", np.zeros((1600, 3)), 16_000)
    assert count_channels(tmp_path / "a.wav") == 1
    assert count_channels(join(tmp_path / "c.wav", tmp_path / "a.wav", tmp_path / "b.wav")) == 3
    assert_is_the_tone(read_audio(tmp_path / "a.wav"))
