"""Several channels and several tracks become one, and nothing that was said cancels out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from asr_doge.audio.arrays import prepare_waveform
from asr_doge.audio.channels import to_mono
from asr_doge.audio.reading import read_audio
from asr_doge.errors import AudioError
from tests.audio.odd import RATE, Track, pitch, tone, write

SAID = tone(440, 2, RATE)
ZERO = np.zeros_like(SAID)


@pytest.mark.parametrize(
    ("planes", "heard", "is_told"),
    [
        ([SAID, -SAID], SAID, True),
        ([SAID, -0.95 * SAID], SAID, True),
        ([SAID, SAID], SAID, False),
        ([SAID, ZERO], SAID / 2, False),
        ([ZERO, ZERO], ZERO, False),
        ([ZERO] * 5 + [SAID], SAID, True),
        ([SAID + 0.2, -SAID + 0.2], SAID + 0.2, True),
    ],
    ids=["opposite", "nearly opposite", "same", "one side", "silence", "one of six", "opposite with an offset"],
)
def test_what_the_mean_loses_is_taken_from_the_loudest_channel(
    tmp_path: Path, planes: list[NDArray[Any]], heard: NDArray[Any], is_told: bool
) -> None:
    soundfile.write(tmp_path / "a.wav", np.stack(planes, axis=1), RATE, subtype="FLOAT")
    notes: list[str] = []
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav", on_note=notes.append), heard, atol=1e-6)
    assert len(notes) == is_told
    assert all(note.startswith(str(tmp_path / "a.wav")) for note in notes)
    np.testing.assert_allclose(prepare_waveform(np.stack(planes), RATE, on_note=notes.append), heard, atol=1e-6)


def test_a_speaker_in_opposite_phase_is_heard_beside_others(tmp_path: Path) -> None:
    left = np.concatenate([SAID, tone(880, 2, RATE)])
    right = np.concatenate([SAID, -tone(880, 2, RATE)])
    soundfile.write(tmp_path / "a.flac", np.stack([left, right], axis=1), RATE)
    waveform = read_audio(tmp_path / "a.flac")
    assert [pitch(waveform, moment) for moment in (1, 3)] == pytest.approx([440, 880], abs=5)


def test_a_channel_that_is_asked_for_is_read_alone(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.stack([SAID, tone(880, 2, RATE)], axis=1), RATE)
    assert pitch(read_audio(tmp_path / "a.wav", channel=0), 1) == pytest.approx(440, abs=5)
    assert pitch(read_audio(tmp_path / "a.wav", channel=1), 1) == pytest.approx(880, abs=5)
    with pytest.raises(AudioError, match=r"a\.wav has 2 channels, and no channel 3"):
        read_audio(tmp_path / "a.wav", channel=2)


@settings(max_examples=20)
@given(st.lists(st.integers(1, 2500), min_size=1, max_size=10))
def test_how_samples_arrive_changes_nothing(sizes: list[int]) -> None:
    rng = np.random.default_rng(0)
    common, side = rng.normal(0, 0.1, 5000), rng.normal(0, 0.1, 5000)
    side[:2000] = 0
    common[2000:4000] = 0
    planes = np.stack([common + side, common - side]).astype(np.float32)
    edges = [edge for edge in np.cumsum([0, *sizes]) if edge < 5000]
    blocks = [planes[:, a:b] for a, b in zip(edges, [*edges[1:], 5000], strict=True)]

    def mixed(blocks: list[NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate(list(to_mono(blocks, 1000, "a", None, lambda note: None)))

    np.testing.assert_array_equal(mixed(blocks), mixed([planes]))
    np.testing.assert_allclose(mixed([planes])[:2000], common[:2000], atol=1e-6)
    np.testing.assert_allclose(mixed([planes])[2000:4000], side[2000:4000], atol=1e-6)


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize(("first", "second", "heard"), [(0, 880, 880), (440, 0, 440), (440, 880, 440)])
def test_of_several_tracks_one_with_sound_is_read_and_the_others_named(
    tmp_path: Path, ending: str, first: float, second: float, heard: float
) -> None:
    tracks = [Track("aac", [(0, first, 2)], 44_100), Track("aac", [(0, second, 2)], 44_100, language="deu")]
    notes: list[str] = []
    waveform = read_audio(write(tmp_path / f"a.{ending}", tracks), on_note=notes.append)
    assert pitch(waveform, 1) == pytest.approx(heard, abs=10)
    (note,) = notes
    assert "has 2 sound tracks" in note
    assert ("track 1 is silent" in note) == (first == 0)
    assert f"not read: track {1 if first == 0 else 2}" in note
