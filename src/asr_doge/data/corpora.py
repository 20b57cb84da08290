"""The layouts in which corpora come, as a registry of small declarations.

Promises: `find_corpus(name)` knows which splits a folder offers and lists a split's recordings with their transcripts,
in an order that depends on names alone. To add a corpus, write the two functions and declare them in `CORPORA`.
It opens no recording and normalizes no text.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from asr_doge.audio.reading import find_audio_files
from asr_doge.data.digits import FSDD_TEST_TAKES, FSDDRecording, list_fsdd
from asr_doge.data.manifest import read_manifest
from asr_doge.errors import AudioError, ConfigError, DataError


@dataclass(frozen=True)
class SourceUtterance:
    """One recording as its corpus lists it."""

    id: str
    audio_path: Path
    raw_text: str
    """The transcript, untouched; empty if there is a `problem`."""
    split: str
    """The split that was asked for."""
    speaker: str | None = None
    language: str | None = None
    problem: str | None = None
    """Why there is no transcript, if there is none."""


@dataclass(frozen=True)
class Corpus:
    """A layout. Both functions are given the folder, which exists."""

    layout: str
    """How the files lie, and what splits there are; for help texts."""
    default_splits: tuple[str, str, str]
    """Splits to train on, to tune on and to test on."""
    splits: Callable[[Path], list[str]]
    """Names of the splits that a folder offers; of an open-ended set, the main ones."""
    list_split: Callable[[Path, str], Iterable[SourceUtterance] | None]
    """The utterances of a split; None if the folder has no such split."""

    def read(self, folder: Path, split: str) -> list[SourceUtterance]:
        """List a split.

        Raises:
            DataError: no such folder or split, an empty split, or a malformed list of transcripts.
        """
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder: give --data_dir the corpus's folder")
        listed = self.list_split(folder, split)
        utterances = list(listed) if listed is not None else []
        if not utterances:
            found = ", ".join(self.splits(folder))
            remedy = f"choose from {found}" if found else f"expected {self.layout}; name another layout with --dataset"
            raise DataError(f"{folder} has no split '{split}': {remedy}")
        return utterances


def find_corpus(name: str) -> Corpus:
    """The declaration of a corpus.

    Raises:
        ConfigError: no corpus of that name.
    """
    if name not in CORPORA:
        raise ConfigError(f"--dataset {name} is unknown: choose from {', '.join(CORPORA)}")
    return CORPORA[name]


# LibriSpeech


def _librispeech_root(folder: Path) -> Path:
    """The archives unpack into a folder `LibriSpeech`; both it and the folder around it are accepted."""
    return folder / "LibriSpeech" if (folder / "LibriSpeech").is_dir() else folder


def _librispeech_splits(folder: Path) -> list[str]:
    return sorted({path.parents[2].name for path in _librispeech_root(folder).glob("*/*/*/*.trans.txt")})


def _librispeech(folder: Path, split: str) -> Iterator[SourceUtterance]:
    for transcripts in sorted((_librispeech_root(folder) / split).glob("*/*/*.trans.txt")):
        chapter = transcripts.parent
        texts: dict[str, str] = {}
        for line in _read_text(transcripts).split("\n"):
            id_, _, text = line.partition(" ")
            texts[id_] = text
        recorded = {path.stem for path in chapter.glob("*.flac")}
        for id_ in sorted(recorded | {id_ for id_ in texts if id_}):
            yield SourceUtterance(
                id=id_,
                audio_path=chapter / f"{id_}.flac",
                raw_text=texts.get(id_, ""),
                split=split,
                speaker=chapter.parent.name,
                language="en",
                problem=None if id_ in texts else f"{transcripts.name} does not list it",
            )


# The Free Spoken Digit Dataset

_FSDD_DEV_TAKES = {take + len(FSDD_TEST_TAKES) for take in FSDD_TEST_TAKES}


def _fsdd_splits(folder: Path) -> list[str]:
    speakers = {recording.speaker for recording in list_fsdd(folder)}
    if not speakers:
        return []
    a_speaker = min(speakers)
    forms = ["train-without-dev", f"train-without-{a_speaker}", f"test-of-{a_speaker}"]
    return ["train", "dev", "test", "all", *sorted(speakers), *forms]


def _fsdd(folder: Path, split: str) -> list[SourceUtterance] | None:
    """A split is a set of recordings, with sets taken away (`-without-`) or intersected (`-of-`), left to right."""
    recordings = list_fsdd(folder)
    speakers = {recording.speaker for recording in recordings}
    first, *steps = re.split(r"-(without|of)-", split)
    if not {first, *steps[1::2]} <= {"train", "dev", "test", "all", *speakers}:
        return None

    def belongs(recording: FSDDRecording) -> bool:
        names = _fsdd_sets(recording)
        inside = first in names
        for operator, name in zip(steps[::2], steps[1::2], strict=True):
            inside = inside and ((name in names) == (operator == "of"))
        return inside

    return [
        SourceUtterance(
            id=recording.path.stem,
            audio_path=recording.path,
            raw_text=recording.word,
            split=split,
            speaker=recording.speaker,
            language="en",
        )
        for recording in recordings
        if belongs(recording)
    ]


def _fsdd_sets(recording: FSDDRecording) -> set[str]:
    """Names of the sets that a recording belongs to."""
    names = {"all", recording.speaker, "test" if recording.is_test else "train"}
    return names | {"dev"} if recording.take in _FSDD_DEV_TAKES else names


# A folder of recordings, each with a text file beside it


def _folder_splits(folder: Path) -> list[str]:
    return ["all", *sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")]


def _folder(folder: Path, split: str) -> list[SourceUtterance] | None:
    chosen = folder if split in ("all", ".") and not (folder / "all").is_dir() else folder / split
    try:
        paths = find_audio_files(chosen)
    except AudioError:  # no such folder, or nothing in it
        return None
    return [_with_text_beside(path, folder, split) for path in paths]


def _with_text_beside(path: Path, folder: Path, split: str) -> SourceUtterance:
    text_path = path.with_suffix(".txt")
    raw_text, problem = "", None
    try:
        raw_text = _read_text(text_path).strip()
    except DataError as error:
        problem = str(error) if text_path.exists() else f"{text_path.name} is missing"
    id_ = path.relative_to(folder).with_suffix("").as_posix()
    return SourceUtterance(id_, path, raw_text, split, problem=problem)


# Manifests

_MANIFEST_NAMES = ("{}.jsonl", "{}.json", "{}_manifest.json")


def manifest_of_split(folder: Path, split: str) -> Path | None:
    """The manifest of a split in a folder of manifests, if there is one."""
    candidates = (folder / name.format(split) for name in _MANIFEST_NAMES)
    return next((path for path in candidates if path.is_file()), None)


def _manifest_splits(folder: Path) -> list[str]:
    return sorted({path.stem.removesuffix("_manifest") for path in folder.glob("*.json*")})


def _manifest(folder: Path, split: str) -> list[SourceUtterance] | None:
    path = manifest_of_split(folder, split)
    if path is None:
        return None
    return [
        SourceUtterance(u.id, u.audio_path, u.raw_text, split, u.speaker, u.language)
        for u in read_manifest(path, need_durations=False)
    ]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8: save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check the file") from None


CORPORA: dict[str, Corpus] = {
    "librispeech": Corpus(
        layout="SPLIT/SPEAKER/CHAPTER/*.flac with *.trans.txt, as the archives unpack",
        default_splits=("train-clean-100", "dev-clean", "test-clean"),
        splits=_librispeech_splits,
        list_split=_librispeech,
    ),
    "fsdd": Corpus(
        layout=(
            "DIGIT_SPEAKER_TAKE.wav; splits: test (takes 0-4) and train (the others) by its authors' rule, dev (takes"
            " 5-9, a part of train), all, or a speaker's name; joined as in train-without-dev,"
            " train-without-lucas or test-of-lucas"
        ),
        default_splits=("train-without-dev", "dev", "test"),
        splits=_fsdd_splits,
        list_split=_fsdd,
    ),
    "folder": Corpus(
        layout="recordings in any subfolders, each with NAME.txt beside it; splits: a subfolder's name, or all",
        default_splits=("train", "dev", "test"),
        splits=_folder_splits,
        list_split=_folder,
    ),
    "manifest": Corpus(
        layout="JSON lines, ours or NeMo's, in SPLIT.jsonl, SPLIT.json or SPLIT_manifest.json",
        default_splits=("train", "dev", "test"),
        splits=_manifest_splits,
        list_split=_manifest,
    ),
}
"""Every corpus by its name on the command line."""
