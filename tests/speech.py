"""Tiny corpora of noise with texts, and checkpoints that write little, for the tests of what runs a model."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from asr_doge.data import Utterance, write_manifest
from tests.models import tiny

RATE = 16_000
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "sea", "shells")


def write_wav(path: Path, waveform: NDArray[np.float32], rate: int = RATE, subtype: str | None = None) -> Path:
    """One recording, in the format that the ending names; `waveform` is `[samples]` or `[samples, channels]`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, waveform, rate, subtype=subtype)
    return path


def utterances(folder: Path, split: str, count: int, seed: int = 0) -> list[Utterance]:
    """Recordings of 0.4 to 1.6 s by two speakers in turn, each with a text of two to four words."""
    rng = np.random.default_rng([seed, *split.encode()])
    made = []
    for number in range(count):
        seconds = round(float(rng.uniform(0.4, 1.6)), 3)
        path = write_wav(
            folder / "audio" / f"{split}-{number}.wav", tiny.random_waveform(seconds, seed=seed + 100 * number)
        )
        text = " ".join(rng.choice(WORDS, int(rng.integers(2, 5))))
        speaker = ("ann", "bob")[number % 2]
        made.append(Utterance(f"{split}-{number}", path, text, text.capitalize() + ".", seconds, speaker))
    return made


def write_corpus(folder: Path, train: int = 8, dev: int = 4, test: int = 4) -> Path:
    """Three manifests and their recordings, as `asr-doge process` leaves them."""
    for split, count in (("train", train), ("dev", dev), ("test", test)):
        write_manifest(folder / f"{split}_manifest.json", utterances(folder, split, count))
    return folder


def edit_json(path: Path, **values: object) -> None:
    """Set some values of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def brief_checkpoint(source: Path, folder: Path, tokens: int = 12) -> Path:
    """A copy of a checkpoint that writes at most `tokens` tokens; random models never stop by themselves."""
    shutil.copytree(source, folder)
    edit_json(folder / "generation_config.json", max_new_tokens=tokens)
    return folder


def write_yaml(path: Path, lines: Sequence[str]) -> Path:
    """A configuration file."""
    path.write_text("\n".join(lines) + "\n")
    return path
