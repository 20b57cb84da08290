"""Clips that a process of its own decodes are those that are decoded here, and so are their faults."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr_doge.audio.file_decoding import DecoderDiedError, FileDecoder
from asr_doge.audio.reading import read_clip
from asr_doge.errors import AudioError
from tests.scaling.conftest import python_path
from tests.scaling.fragile.sitecustomize import CRASHES


@pytest.fixture(scope="module")
def decoder() -> Iterator[FileDecoder]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", python_path())
        with closing(FileDecoder(500_000_000)) as decoder:
            yield decoder


@pytest.mark.parametrize(("rate", "wanted"), [(16_000, 16_000), (44_100, 16_000), (22_050, 24_000)])
@pytest.mark.parametrize("peak", [0.5, 0.003])  # the quiet one is raised
def test_samples_are_the_same(decoder: FileDecoder, tmp_path: Path, rate: int, wanted: int, peak: float) -> None:
    path = tmp_path / "a.flac"
    clip = peak * np.sin(np.arange(31_013) ** 1.2 / 300)
    soundfile.write(path, np.stack([clip, 0.5 * clip], axis=1), rate)
    found = decoder.read_clip(path, wanted, None)
    assert abs(len(found) - 31_013 * wanted / rate) <= 1
    np.testing.assert_array_equal(found, read_clip(path, wanted))


@pytest.mark.parametrize("kind", ["missing", "empty", "no audio", "short", "long", "cut", "folder"])
def test_faults_are_the_same(decoder: FileDecoder, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.wav"
    if kind in ("short", "long", "cut"):
        soundfile.write(path, np.zeros(1_000 if kind == "short" else 40_000), 16_000)
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:50_001])
    elif kind in ("empty", "no audio"):
        path.write_text("" if kind == "empty" else kind)
    elif kind == "folder":
        path.mkdir()
    faults = []
    for read in (read_clip, decoder.read_clip):
        with pytest.raises(AudioError) as fault:
            read(path, 16_000, 39_999)
        faults.append((type(fault.value), str(fault.value)))
    assert faults[0] == faults[1]


def test_a_crash_is_told(decoder: FileDecoder, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(CRASHES)
    with pytest.raises(DecoderDiedError, match=r"a\.wav crashes its decoder \(SIGSEGV\)"):
        decoder.read_clip(tmp_path / "a.wav", 16_000, None)
