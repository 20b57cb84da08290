"""Make spoken digit strings: the domain of the bundled nano model.

Promises: strings of the ten English digit words, joined from recordings of single digits with silence between them, or
spoken by espeak-ng; deterministic for a given random generator. The voices kept out of training are defined here only.
It does not train anything.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from asr_doge.audio.reading import read_audio
from asr_doge.audio.resampling import SAMPLE_RATE
from asr_doge.audio.synthesis import Voice, synthesize, voice_names
from asr_doge.data.manifest import Utterance, write_manifest
from asr_doge.errors import DataError

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FSDD_TEST_TAKES = range(5)
"""Takes 0–4 of each digit and speaker are the test split of the Free Spoken Digit Dataset, by its authors' rule."""

_FSDD_NAME = re.compile(r"(?P<digit>[0-9])_(?P<speaker>[^_]+)_(?P<take>[0-9]+)\.wav")

Recordings = dict[str, dict[str, list[NDArray[np.float32]]]]
"""Waveforms `[samples]` at 16 kHz by speaker and digit word."""


def random_digits(rng: np.random.Generator, length: tuple[int, int] = (2, 8)) -> list[str]:
    """A string of digit words; `length` is the smallest and largest number of words."""
    return [DIGIT_WORDS[i] for i in rng.integers(0, len(DIGIT_WORDS), rng.integers(length[0], length[1] + 1))]


def join_recordings(
    recordings: Sequence[NDArray[np.float32]],
    rng: np.random.Generator,
    pause_seconds: tuple[float, float] = (0.05, 0.4),
) -> NDArray[np.float32]:
    """Concatenate recordings with silence of random length before, between and after them.

    Args:
        recordings: `[samples]` each, at 16 kHz.
        rng: source of the pauses.
        pause_seconds: shortest and longest pause, in seconds.
    """
    parts = [_silence(rng, pause_seconds)]
    for recording in recordings:
        parts += [recording, _silence(rng, pause_seconds)]
    return np.concatenate(parts)


@dataclass(frozen=True)
class FSDDRecording:
    """A file of the Free Spoken Digit Dataset, as its name describes it."""

    path: Path
    word: str
    speaker: str
    take: int

    @property
    def is_test(self) -> bool:
        """Whether it belongs to the authors' test split."""
        return self.take in FSDD_TEST_TAKES


def list_fsdd(folder: Path) -> list[FSDDRecording]:
    """The recordings (`{digit}_{speaker}_{take}.wav`) of a dataset or its `recordings` folder, sorted by name."""
    folder = folder / "recordings" if (folder / "recordings").is_dir() else folder
    matches = ((path, _FSDD_NAME.fullmatch(path.name)) for path in sorted(folder.glob("*.wav")))
    return [
        FSDDRecording(path, DIGIT_WORDS[int(match["digit"])], match["speaker"], int(match["take"]))
        for path, match in matches
        if match
    ]


def read_fsdd(folder: Path, takes: str = "all", only: Sequence[str] = (), without: Sequence[str] = ()) -> Recordings:
    """Recordings of a Free Spoken Digit Dataset folder (`{digit}_{speaker}_{take}.wav`).

    Args:
        folder: the dataset, or its `recordings` folder.
        takes: `train`, `test` (the authors' split) or `all`.
        only: speakers to read; none means all.
        without: speakers to leave out.

    Raises:
        DataError: the folder holds no such recordings, or none of some digit by a speaker.
    """
    chosen: dict[str, dict[str, list[Path]]] = {}
    for recording in list_fsdd(folder):
        if (only and recording.speaker not in only) or recording.speaker in without:
            continue
        if takes in ("all", "test" if recording.is_test else "train"):
            chosen.setdefault(recording.speaker, {}).setdefault(recording.word, []).append(recording.path)
    if not chosen:
        raise DataError(f"no {takes} recordings named like 7_george_12.wav in {folder}")
    kind = "" if takes == "all" else f"{takes} "
    for speaker, by_word in chosen.items():
        if lacking := [word for word in DIGIT_WORDS if word not in by_word]:
            missing = f"{kind}recording of {', '.join(lacking)} by {speaker}"
            raise DataError(f"{folder} has no {missing}: add one, or leave the speaker out")
    return {
        speaker: {word: [read_audio(path) for path in paths] for word, paths in by_word.items()}
        for speaker, by_word in chosen.items()
    }


def spoken_digits(
    recordings: dict[str, list[NDArray[np.float32]]], digits: Sequence[str], rng: np.random.Generator
) -> NDArray[np.float32]:
    """A digit string joined from one speaker's single digits, `[samples]` at 16 kHz; each is drawn at random."""
    return join_recordings([recordings[d][rng.integers(len(recordings[d]))] for d in digits], rng)


@dataclass(frozen=True)
class VoiceSplit:
    """espeak-ng voices for training, and those kept out of it."""

    train: tuple[str, ...]
    unseen: tuple[str, ...]


def split_voices() -> VoiceSplit:
    """Keep every eighth voice variant out of training, in all accents."""
    names = voice_names()
    variants = sorted({name.partition("+")[2] for name in names})
    unseen = set(variants[4::8])
    return VoiceSplit(
        train=tuple(name for name in names if name.partition("+")[2] not in unseen),
        unseen=tuple(name for name in names if name.partition("+")[2] in unseen),
    )


def random_voice(names: Sequence[str], rng: np.random.Generator) -> Voice:
    """A voice: one of `names`, with a random speed, pitch and liveliness in the human range."""
    return Voice(
        name=names[int(rng.integers(len(names)))],
        words_per_minute=int(rng.integers(110, 220)),
        pitch=int(rng.integers(20, 80)),
        pitch_range=int(rng.integers(20, 80)),
    )


def synthesized_digits(digits: Sequence[str], voice: Voice, rng: np.random.Generator) -> NDArray[np.float32]:
    """A digit string spoken by espeak-ng, `[samples]` at 16 kHz: word by word, as a list, or in one breath."""
    manner = rng.random()
    if manner < 0.5:
        return join_recordings([_trim(synthesize(word, voice)) for word in digits], rng)
    return synthesize((", " if manner < 0.75 else " ").join(digits), voice)


@dataclass(frozen=True)
class DigitClip:
    """One spoken digit string: `[samples]` at 16 kHz, its words, and its speaker or voice."""

    waveform: NDArray[np.float32]
    digits: Sequence[str]
    speaker: str


def synthesized_clips(count: int, voices: Sequence[str], seed: int) -> Iterator[DigitClip]:
    """Digit strings in random ones of the espeak-ng `voices`."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        digits, voice = random_digits(rng), random_voice(voices, rng)
        yield DigitClip(synthesized_digits(digits, voice, rng), digits, voice.name)


def recorded_clips(count: int, recordings: Recordings, seed: int) -> Iterator[DigitClip]:
    """`count` digit strings of each speaker, from recordings of single digits."""
    rng = np.random.default_rng(seed)
    for speaker, by_digit in sorted(recordings.items()):
        for _ in range(count):
            digits = random_digits(rng)
            yield DigitClip(spoken_digits(by_digit, digits, rng), digits, speaker)


def write_clips(folder: Path, split: str, clips: Iterable[DigitClip]) -> Path:
    """Write clips as `{split}.jsonl` and WAV files in `audio/{split}`, for `asr-doge process --dataset manifest`."""
    audio_dir = folder / "audio" / split
    audio_dir.mkdir(parents=True, exist_ok=True)
    utterances = []
    for number, clip in enumerate(clips):
        name = f"{split}-{number:05d}"
        path = audio_dir / f"{name}.wav"
        soundfile.write(path, np.clip(clip.waveform, -1.0, 1.0), SAMPLE_RATE, subtype="PCM_16")
        text = " ".join(clip.digits)
        utterances.append(Utterance(name, path.resolve(), text, text, len(clip.waveform) / SAMPLE_RATE, clip.speaker))
    manifest = folder / f"{split}.jsonl"
    write_manifest(manifest, utterances)
    return manifest


def _trim(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Without the silence that espeak-ng leaves around a word."""
    loud = np.flatnonzero(np.abs(waveform) > 0.01 * np.abs(waveform).max())
    return waveform[loud[0] : loud[-1] + 1] if loud.size else waveform


def _silence(rng: np.random.Generator, seconds: tuple[float, float]) -> NDArray[np.float32]:
    return np.zeros(int(rng.uniform(*seconds) * SAMPLE_RATE), dtype=np.float32)
