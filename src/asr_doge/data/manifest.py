"""Read and write manifests: JSON lines, an utterance each.

Promises: utterances that are read are complete and typed, and any fault is one `DataError` line with the file and the
line number; a manifest is written completely or not at all, the same utterances give the same bytes, and paths of
recordings are relative to the manifest's folder, so both can be moved together. NeMo's `audio_filepath` is read too. It
opens no recording and normalizes no text: both are as in the file.
"""

import hashlib
import heapq
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asr_doge.choices import SampleChoice
from asr_doge.data.atomic_writing import write_atomically
from asr_doge.data.text_files import NOT_UTF8, is_utf8, read_lines
from asr_doge.errors import DataError


@dataclass(frozen=True)
class Utterance:
    """A recording (or part of one) with its transcript."""

    id: str
    """Unique within its manifest."""
    audio_path: Path
    """The recording; absolute once read."""
    text: str
    """The text to train on and to score against; normalized if `asr-doge process` wrote it."""
    raw_text: str
    """The transcript as its corpus gives it."""
    duration: float
    """Length of the recording, in seconds."""
    speaker: str | None = None
    """The speaker, if known."""
    language: str | None = None
    """Code of the language, such as `en`, if known."""


def read_manifest(path: str | os.PathLike[str]) -> list[Utterance]:
    """Read a manifest; blank lines are skipped.

    Args:
        path: JSON lines with `audio_path` (or `audio_filepath`; relative to the manifest's folder, or absolute),
            `text`, `duration`, and optionally `id` (default: see `default_id`), `raw_text` (default: the text),
            `speaker` and `language`. Other fields are ignored.

    Returns:
        At least one utterance, in the order of the file.

    Raises:
        DataError: the file is missing, unreadable, not UTF-8 or empty, or a line is malformed or repeats an id.
    """
    path = Path(path)
    utterances = []
    lines_by_id: dict[str, int] = {}
    for number, utterance in scan_manifest(path):
        if isinstance(utterance, str):
            raise DataError(f"{path} line {number}: {utterance}")
        if utterance.id in lines_by_id:
            first = lines_by_id[utterance.id]
            raise DataError(
                f"{path} line {number}: the id {utterance.id!r} is already that of line {first};"
                ' give each line an "id" of its own'
            )
        lines_by_id[utterance.id] = number
        utterances.append(utterance)
    if not utterances:
        raise DataError(f"{path} holds no utterances: make it again with 'asr-doge process'")
    return utterances


def manifest_path(split: str, data_dir: str, named: str | None = None) -> Path:
    """The manifest of a split: the one that is named, or the one that `asr-doge process` writes to `data_dir`."""
    return Path(named or Path(data_dir) / f"{split}_manifest.json")


def check_manifest(path: Path) -> None:
    """Raise a DataError if there is no such file."""
    if not path.exists():
        raise DataError(f"{path} does not exist: make it with 'asr-doge process', or correct the path")


def manifests_in(data_dir: str) -> list[Path]:
    """The manifests in a folder.

    Raises:
        DataError: there is none.
    """
    manifests = sorted(Path(data_dir).glob("*_manifest.json"))
    if not manifests:
        raise DataError(f"no *_manifest.json in {data_dir}; run `asr-doge process` first")
    return manifests


def scan_manifest(path: Path, *, need_durations: bool = True) -> Iterator[tuple[int, Utterance | str]]:
    """Read a manifest that may be partly malformed; a duration that is not needed is NaN where there is none.

    Yields:
        For each line that is not blank its number, from 1, and its utterance, or what is wrong with it.

    Raises:
        DataError: the file is missing or unreadable.
    """
    check_manifest(path)
    folder = Path(os.path.abspath(path.parent))  # noqa: PTH100 - `resolve` would replace the user's links
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            yield number, _utterance(_fields(line), folder, need_durations)
        except ValueError as error:
            yield number, str(error)


Sample = Utterance | Mapping[str, Any]
"""An utterance, or the fields of a manifest's line, as `json.loads` gives them."""


def as_utterances(samples: Sequence[Sample], folder: str | os.PathLike[str] | None = None) -> list[Utterance]:
    """Utterances from samples that may be the fields of a manifest's lines.

    Args:
        samples: in any mixture; the same fields as in a line are required, except the duration, which is then NaN.
        folder: the manifest's folder, where relative paths are searched first; then in the working directory.

    Raises:
        DataError: fields are missing or malformed, or an id occurs twice; the message names the sample.
    """
    utterances: list[Utterance] = []
    places: dict[str, int] = {}
    for number, sample in enumerate(samples):
        try:
            utterance = sample if isinstance(sample, Utterance) else _utterance_of(sample, folder)
        except ValueError as error:
            raise DataError(f"sample {number} of {len(samples)}: {error}") from None
        if (first := places.setdefault(utterance.id, number)) != number:
            raise DataError(f"samples {first} and {number} have the same id {utterance.id!r}: give each one of its own")
        utterances.append(utterance)
    return utterances


def _utterance_of(fields: object, folder: str | os.PathLike[str] | None) -> Utterance:
    if not isinstance(fields, Mapping):
        raise ValueError(f"a {type(fields).__name__}; give an Utterance, or the fields of a manifest's line")
    given = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in fields.items()}
    here = _utterance(given, Path.cwd(), need_duration=False)
    if folder is None:
        return here
    there = _utterance(given, Path(os.path.abspath(folder)), need_duration=False)  # noqa: PTH100 - as in `scan_manifest`
    return there if there.audio_path.exists() or not here.audio_path.exists() else here


def write_manifest(path: str | os.PathLike[str], utterances: Iterable[Utterance]) -> None:
    """Write a manifest that `read_manifest` reads back equal; unknown speakers and languages are left out.

    Ids must be unique. Missing folders are made, and an existing file is replaced.

    Raises:
        DataError: the file cannot be written, or there is nothing to write.
    """
    path = Path(path)
    lines = [_line(utterance, path.parent) for utterance in utterances]
    if not lines:
        raise DataError(f"{path} would hold no utterances: nothing is written")
    # An undecodable byte of a file name is a lone surrogate in Python and has no UTF-8 form. Its backslash escape is
    # the same as JSON's.
    write_atomically(path, "".join(lines).encode("utf-8", "backslashreplace"))


def sample_utterances(utterances: Sequence[Utterance], count: int, choice: SampleChoice = "spread") -> list[Utterance]:
    """At most `count` of the utterances, spread over all of them or the first, in their order.

    A manifest is often sorted by speaker or by text, so its first lines are one speaker's. "spread" takes the `count`
    utterances whose ids have the smallest SHA-256: the same on every machine and in any order, and mostly the same for
    another count or after utterances are added.
    """
    if choice == "first":
        return list(utterances[:count])
    chosen = heapq.nsmallest(count, range(len(utterances)), key=lambda index: id_digest(utterances[index].id))
    return [utterances[index] for index in sorted(chosen)]


def default_id(audio_path: Path, folder: Path) -> str:
    """The id of a recording whose corpus gives it none: its path relative to the folder, without extension.

    File names are often not unique: `s1/001.wav`, `s2/001.wav`. An absolute path that leads elsewhere is kept.
    """
    given = audio_path.relative_to(folder) if audio_path.is_relative_to(folder) else audio_path
    plain = Path(os.path.normpath(given))
    return (plain.with_suffix("") if plain.stem.strip(".") else plain).as_posix()


def id_digest(utterance_id: str) -> bytes:
    """SHA-256 of an id, for random choices that must depend only on the utterance; accepts lone surrogates too."""
    return hashlib.sha256(utterance_id.encode("utf-8", "surrogatepass")).digest()


def _fields(line: str) -> dict[str, Any]:
    """One line as an object; a ValueError says what is wrong and how to fix it."""
    if not is_utf8(line):
        raise ValueError(NOT_UTF8)
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("not JSON; write one object a line") from None
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object; write {...} on each line")
    return fields


def _utterance(fields: dict[str, Any], folder: Path, need_duration: bool) -> Utterance:
    """Check one object; a ValueError says what is wrong and how to fix it."""
    audio = _text_field(fields, "audio_path" if "audio_path" in fields else "audio_filepath")
    text = _text_field(fields, "text")
    if not audio:
        raise ValueError('no "audio_path"; name the recording')
    if "\0" in audio:
        raise ValueError("the path of the recording holds a null character; correct it")
    if text is None:
        raise ValueError('no "text"; give the transcript')
    if fields.get("offset"):
        raise ValueError('"offset" is not supported; cut the recording into one file for each utterance')
    raw_text = _text_field(fields, "raw_text")
    audio_path = _absolute(Path(audio), folder)
    return Utterance(
        id=_text_field(fields, "id") or default_id(folder / audio, folder),
        audio_path=audio_path,
        text=text,
        raw_text=text if raw_text is None else raw_text,
        duration=_duration(fields, need_duration),
        speaker=_text_field(fields, "speaker"),
        language=_text_field(fields, "language"),
    )


def _text_field(fields: dict[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if name in ("id", "speaker") and type(value) is int:  # many corpora number their speakers
        return str(value)
    if value is not None and not isinstance(value, str):
        raise ValueError(f'"{name}" is not text; write it in quotation marks')
    return value


def _duration(fields: dict[str, Any], needed: bool) -> float:
    value = fields.get("duration")
    if value is None and not needed:
        return math.nan
    if value is None:
        raise ValueError("no \"duration\"; let 'asr-doge process --dataset manifest' measure it")
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise ValueError('"duration" is not a positive number; give seconds')
    return float(value)


def _line(utterance: Utterance, folder: Path) -> str:
    fields = {
        "id": utterance.id,
        "audio_path": _relative(utterance.audio_path, folder),
        "text": utterance.text,
        "raw_text": utterance.raw_text,
        "duration": utterance.duration,
        "speaker": utterance.speaker,
        "language": utterance.language,
    }
    known = {name: value for name, value in fields.items() if value is not None}
    return json.dumps(known, ensure_ascii=False) + "\n"


def _absolute(path: Path, folder: Path) -> Path:
    if ".." not in path.parts:
        return folder / path
    # ".." above a linked folder is the parent of its real place: the same file that the system would open.
    return Path(os.path.normpath(folder.resolve() / path))


def _relative(path: Path, folder: Path) -> str:
    """`path` relative to `folder`; recordings inside it keep the user's links, others are named by their real place."""
    inside, outside = Path(os.path.abspath(path)), Path(os.path.abspath(folder))  # noqa: PTH100
    if inside.is_relative_to(outside):
        return inside.relative_to(outside).as_posix()
    real = path.parent.resolve() / path.name  # the recording's own link may lead to a store with unreadable names
    try:
        return Path(os.path.relpath(real, folder.resolve())).as_posix()
    except ValueError:  # another drive on Windows
        return real.as_posix()
