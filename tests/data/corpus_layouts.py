"""Small corpora in their authors' layouts, and the features of an encoder that does not exist."""

import zlib
from pathlib import Path

import numpy as np
import soundfile


def write_recording(path: Path, seconds: float = 1.0, rate: int = 16_000) -> Path:
    """Quiet noise, in the format that the ending names; each name has noise of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = zlib.crc32("/".join(path.parts[-3:]).encode())
    samples = np.random.default_rng(seed).normal(0, 0.01, round(seconds * rate))
    soundfile.write(path, samples.astype(np.float32), rate)
    return path


def write_librispeech(folder: Path) -> Path:
    """Three splits; speakers 19 and 26 to train on, 84 to tune on, 61 to test on."""
    root = folder / "LibriSpeech"
    for split, speaker, texts in [
        ("train-clean-100", "19", ["NORTHANGER ABBEY", "IT'S A SMALL-TOWN STORY"]),
        ("train-clean-100", "26", ["HELLO"]),
        ("dev-clean", "84", ["GO"]),
        ("test-clean", "61", ["STOP"]),
    ]:
        chapter = root / split / speaker / "198"
        ids = [f"{speaker}-198-{number:04d}" for number in range(len(texts))]
        for id_ in ids:
            write_recording(chapter / f"{id_}.flac")
        lines = [f"{id_} {text}\n" for id_, text in zip(ids, texts, strict=True)]
        (chapter / f"{speaker}-198.trans.txt").write_text("".join(lines))
    return folder


def write_fsdd(folder: Path, speakers: tuple[str, ...] = ("george", "lucas"), takes: int = 12) -> Path:
    """The digits 3 and 7."""
    for speaker in speakers:
        for digit in (3, 7):
            for take in range(takes):
                write_recording(folder / "recordings" / f"{digit}_{speaker}_{take}.wav", 0.6, 8_000)
    return folder
