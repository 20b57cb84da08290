"""Sound is heard when the clock of its file says so."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr_doge.audio.reading import audio_duration, read_audio
from asr_doge.audio.sound import Sound
from asr_doge.audio.timeline import LONGEST_GAP_SECONDS, Clock, fill_gaps
from tests.audio.odd import Track, begins_at, join, pitch, write

WITH_CLOCK = [("mp4", "aac"), ("mov", "aac"), ("mkv", "aac"), ("mkv", "flac"), ("webm", "libopus"), ("ts", "aac")]


@pytest.mark.parametrize(("ending", "codec"), WITH_CLOCK)
def test_a_track_that_starts_late_is_heard_late(tmp_path: Path, ending: str, codec: str) -> None:
    path = write(tmp_path / f"late.{ending}", [Track(codec, [(2, 440, 1)])], picture_seconds=4)
    waveform = read_audio(path)
    assert begins_at(waveform) == pytest.approx(2, abs=0.1)
    assert len(waveform) / 16_000 == pytest.approx(3, abs=0.15)
    assert audio_duration(path) == pytest.approx(len(waveform) / 16_000, abs=1e-3)


@pytest.mark.parametrize(("ending", "codec"), WITH_CLOCK)
def test_a_pause_of_the_recorder_is_silence(tmp_path: Path, ending: str, codec: str) -> None:
    path = write(tmp_path / f"gap.{ending}", [Track(codec, [(0, 440, 0.96), (3, 880, 1)])])
    waveform = read_audio(path)
    assert [pitch(waveform, moment) for moment in (0.5, 2, 3.5)] == pytest.approx([440, 0, 880], abs=10)
    assert begins_at(waveform, after=1.5) == pytest.approx(3, abs=0.1)
    assert len(waveform) / 16_000 == pytest.approx(4, abs=0.15)


@pytest.mark.parametrize("ending", ["ts", "mp4", "mkv"])
def test_joined_videos_keep_sound_and_picture_together(tmp_path: Path, ending: str) -> None:
    """The second part starts where the picture of the first has come to, which is longer than its sound."""
    first = write(tmp_path / f"a.{ending}", [Track("aac", [(0, 440, 1)], 44_100)], picture_seconds=3)
    second = write(tmp_path / f"b.{ending}", [Track("aac", [(0, 880, 1)], 44_100)], picture_seconds=1)
    waveform = read_audio(join(tmp_path / f"joined.{ending}", first, second))
    assert begins_at(waveform, after=1.5) == pytest.approx(3, abs=0.15)


sounds = st.lists(st.tuples(st.integers(-300, 3000), st.integers(1, 2000)), min_size=1, max_size=20)


@given(sounds)
def test_each_sound_is_heard_when_due_and_all_of_it(steps: list[tuple[int, int]]) -> None:
    """Gaps in milliseconds before each sound, and its samples, at 1 kHz: the clock and the samples by arithmetic."""
    due, heard, made = 0.0, 0, []
    for number, (gap, samples) in enumerate(steps):
        due += max(gap, -due * 1000) / 1000
        made.append(Sound(np.full((1, samples), number + 1, dtype=np.float32), 1000, due))
        due += samples / 1000
    joined = np.concatenate([sound.planes for sound in fill_gaps(made)], axis=1)[0]
    for number, sound in enumerate(made):
        places = np.flatnonzero(joined == number + 1)
        assert len(places) == sound.planes.shape[1]
        assert sound.start is not None
        assert places[0] == max(heard, round(sound.start * 1000)) or 0 <= round(sound.start * 1000) - places[0] <= 100
        heard = places[-1] + 1


def test_a_clock_that_leaps_or_restarts_leaves_no_hole() -> None:
    clock = Clock(zero=10.0)
    assert clock.place(0, 10.0, 5.0) == 0.0
    assert clock.place(1, 10.0, 2.0) == 0.0
    assert clock.place(1, 0.0, 1.0) == 5.0  # set anew: goes on where the longest has come to
    assert clock.place(0, 0.5, 1.0) == 5.5
    assert clock.place(0, 1.5 + LONGEST_GAP_SECONDS, 1.0) == 6.5 + LONGEST_GAP_SECONDS
    assert clock.place(0, 1e9, 1.0) == clock.end - 1.0 == 7.5 + LONGEST_GAP_SECONDS
