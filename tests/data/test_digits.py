"""Digit strings say what their text says, the same every time, and held-out voices stay out."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr_doge.audio import SAMPLE_RATE, voice_names
from asr_doge.data import read_manifest
from asr_doge.data.digits import (
    DIGIT_WORDS,
    join_recordings,
    list_fsdd,
    random_digits,
    random_voice,
    read_fsdd,
    recorded_clips,
    split_voices,
    spoken_digits,
    synthesized_clips,
    write_clips,
)
from asr_doge.errors import DataError

TONES = {word: np.full(400, (digit + 1) / 20, dtype=np.float32) for digit, word in enumerate(DIGIT_WORDS)}
"""Every digit a level of its own, so that what was joined can be read back."""


def write_tones(folder: Path, speakers: tuple[str, ...] = ("george", "lucas"), takes: int = 7) -> Path:
    folder.mkdir(parents=True)
    for speaker in speakers:
        for digit in range(10):
            for take in range(takes):
                samples = np.full(400, (digit + 1) / 20)
                soundfile.write(folder / f"{digit}_{speaker}_{take}.wav", samples, SAMPLE_RATE, subtype="FLOAT")
    return folder


def heard(waveform: np.ndarray[tuple[int], np.dtype[np.float32]]) -> list[str]:
    """The digits of joined tones."""
    levels = np.round(waveform * 20).astype(int)
    starts = np.flatnonzero(np.diff(levels, prepend=0) > 0)
    return [DIGIT_WORDS[levels[start] - 1] for start in starts]


def test_strings_have_the_wanted_lengths_and_all_digits() -> None:
    rng = np.random.default_rng(0)
    strings = [random_digits(rng, (2, 4)) for _ in range(200)]
    assert {len(string) for string in strings} == {2, 3, 4}
    assert {word for string in strings for word in string} == set(DIGIT_WORDS)


def test_joined_recordings_are_whole_and_parted_by_silence() -> None:
    parts = [TONES["one"], TONES["one"], TONES["nine"]]
    joined = join_recordings(parts, np.random.default_rng(0), pause_seconds=(0.1, 0.2))
    assert heard(joined) == ["one", "one", "nine"]
    assert np.count_nonzero(joined) == sum(map(len, parts))
    silence = (len(joined) - np.count_nonzero(joined)) / SAMPLE_RATE
    assert 4 * 0.1 - 0.001 <= silence <= 4 * 0.2
    assert joined.dtype == np.float32


def test_a_string_is_of_the_speakers_own_recordings() -> None:
    recordings = {word: [tone, tone[:300]] for word, tone in TONES.items()}
    digits = random_digits(np.random.default_rng(3), (8, 8))
    assert heard(spoken_digits(recordings, digits, np.random.default_rng(4))) == digits


def test_fsdd_takes_and_speakers(tmp_path: Path) -> None:
    root = write_tones(tmp_path / "fsdd" / "recordings").parent
    everything = read_fsdd(root)
    assert everything.keys() == {"george", "lucas"}
    assert everything["george"].keys() == set(DIGIT_WORDS)
    counts = {takes: len(read_fsdd(root / "recordings", takes)["george"]["zero"]) for takes in ("all", "train", "test")}
    assert counts == {"all": 7, "train": 2, "test": 5}
    assert read_fsdd(root, only=["lucas"]).keys() == read_fsdd(root, without=["george"]).keys() == {"lucas"}
    for folder, options in ((root, {"only": ["nobody"]}), (tmp_path, {})):
        with pytest.raises(DataError, match="no all recordings"):
            read_fsdd(folder, **options)  # type: ignore[arg-type]


def test_a_speaker_who_lacks_a_digit_is_named(tmp_path: Path) -> None:
    root = write_tones(tmp_path / "fsdd")
    for digit in (7, 8):
        for take in (5, 6):
            (root / f"{digit}_lucas_{take}.wav").unlink()
    assert read_fsdd(root)["lucas"].keys() == set(DIGIT_WORDS)
    with pytest.raises(DataError, match="has no train recording of seven, eight by lucas: "):
        read_fsdd(root, "train")
    assert read_fsdd(root, "train", without=["lucas"]).keys() == {"george"}


@pytest.mark.parametrize(
    "name", ["7_george_x.wav", "7_a_b_3.wav", "77_george_3.wav", "7_george_3.wav.bak", "notes.wav"]
)
def test_files_of_other_names_are_passed_over(tmp_path: Path, name: str) -> None:
    root = write_tones(tmp_path / "fsdd", takes=1)
    before = list_fsdd(root)
    (root / name).write_text("no sound")
    assert list_fsdd(root) == before
    assert [len(takes) for takes in read_fsdd(root)["george"].values()] == [1] * 10


def test_recorded_clips_are_the_same_every_time(tmp_path: Path) -> None:
    recordings = read_fsdd(write_tones(tmp_path / "fsdd"))
    clips = list(recorded_clips(3, recordings, seed=5))
    assert [clip.speaker for clip in clips] == ["george"] * 3 + ["lucas"] * 3
    for clip, again in zip(clips, recorded_clips(3, recordings, seed=5), strict=True):
        assert heard(clip.waveform) == list(clip.digits) == list(again.digits)
        np.testing.assert_array_equal(clip.waveform, again.waveform)
    others = [clip.digits for clip in recorded_clips(3, recordings, seed=6)]
    assert others != [clip.digits for clip in clips]


def test_held_out_voices_stay_out_in_every_accent() -> None:
    voices = split_voices()
    assert not set(voices.train) & set(voices.unseen)
    assert sorted(voices.train + voices.unseen) == voice_names()
    variants = [{name.partition("+")[2] for name in names} for names in (voices.train, voices.unseen)]
    assert not variants[0] & variants[1]
    assert len(voices.unseen) > 20
    assert {name.partition("+")[0] for name in voices.train} == {name.partition("+")[0] for name in voices.unseen}


def test_synthesized_clips_are_the_same_every_time() -> None:
    voices = split_voices().unseen
    clips = list(synthesized_clips(4, voices, seed=1))
    again = list(synthesized_clips(4, voices, seed=1))
    for clip, other in zip(clips, again, strict=True):
        assert clip.digits == other.digits
        assert clip.speaker in voices
        np.testing.assert_array_equal(clip.waveform, other.waveform)
        assert np.abs(clip.waveform).max() > 0.05
        assert len(clip.waveform) / SAMPLE_RATE > 0.2 * len(clip.digits)
    assert [clip.digits for clip in synthesized_clips(4, voices, seed=2)] != [clip.digits for clip in clips]


def test_random_voices_are_of_those_named() -> None:
    rng = np.random.default_rng(0)
    assert {random_voice(["en-us", "en-gb"], rng).name for _ in range(20)} == {"en-us", "en-gb"}


def test_written_clips_come_back_as_a_manifest(tmp_path: Path) -> None:
    clips = list(recorded_clips(2, read_fsdd(write_tones(tmp_path / "fsdd")), seed=0))
    manifest = write_clips(tmp_path / "corpus", "test", clips)
    assert manifest == tmp_path / "corpus" / "test.jsonl"
    for utterance, clip in zip(read_manifest(manifest), clips, strict=True):
        assert utterance.text == " ".join(clip.digits)
        assert utterance.speaker == clip.speaker
        samples, rate = soundfile.read(utterance.audio_path)
        assert rate == SAMPLE_RATE
        assert utterance.duration == pytest.approx(len(samples) / rate)
        np.testing.assert_allclose(samples, clip.waveform, atol=1e-4)
