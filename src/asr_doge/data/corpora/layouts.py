"""Layouts that any corpus may have: a plain folder, a manifest, a table, Common Voice, Kaldi.

Promises: one bad line affects only one utterance, and none is dropped silently. Languages and speakers are known if the
files name them. It does not know the content of a corpus.
"""

import csv
from collections.abc import Callable, Iterable, Iterator
from itertools import zip_longest
from pathlib import Path

from asr_doge.audio.folders import AUDIO_EXTENSIONS, find_audio_files
from asr_doge.data.corpora.base import (
    ID_USED_TWICE,
    MALFORMED,
    MISSING_AUDIO,
    NO_TRANSCRIPT,
    Corpus,
    Listed,
    Rejected,
    SourceUtterance,
)
from asr_doge.data.manifest import default_id, scan_manifest
from asr_doge.data.text_files import NOT_UTF8, is_utf8, read_lines
from asr_doge.errors import AudioError, DataError


def keyed_lines(path: Path) -> dict[str, str | Rejected]:
    """Lines of `KEY VALUE`, as Kaldi and LibriSpeech write them; a missing file has none.

    Values that are not UTF-8 are rejected, as are those of a key that occurs several times.
    """
    values: dict[str, str | Rejected] = {}
    for line in read_lines(path) if path.exists() else []:
        key, *rest = line.split(maxsplit=1) or [""]
        if not key:
            continue
        if not is_utf8(line):
            values[key] = Rejected(key, MALFORMED, f"{path}: the line of {key} is {NOT_UTF8}")
        elif key in values:
            values[key] = Rejected(key, ID_USED_TWICE, f"{path} has several lines for {key}")
        else:
            values[key] = rest[0].rstrip() if rest else ""
    return values


# A folder of recordings, each with a text file beside it


def _folder_splits(folder: Path) -> list[str]:
    return ["all", *sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")]


def _folder(folder: Path, split: str) -> list[Listed] | None:
    chosen = folder if split in ("all", ".") and not (folder / "all").is_dir() else folder / split
    try:
        paths = find_audio_files(chosen)
    except AudioError:  # no such folder, or nothing in it
        return None
    recorded = {path.with_suffix("") for path in paths}
    unrecorded = sorted(path for path in chosen.rglob("*.txt") if path.with_suffix("") not in recorded)
    return [_with_text_beside(path, folder) for path in paths] + [
        Rejected(_id_in(folder, path), MISSING_AUDIO, f"{path} has no recording of its name beside it")
        for path in unrecorded
        if not any(part.startswith(".") for part in path.relative_to(chosen).parts)
    ]


def _with_text_beside(path: Path, folder: Path) -> Listed:
    id_, text_path = _id_in(folder, path), path.with_suffix(".txt")
    if not text_path.exists():
        return Rejected(id_, NO_TRANSCRIPT, f"{path}: {text_path.name} is missing")
    try:
        text = "\n".join(read_lines(text_path)).strip()
    except DataError as error:
        return Rejected(id_, NO_TRANSCRIPT, str(error))
    if not is_utf8(text):
        return Rejected(id_, NO_TRANSCRIPT, f"{text_path}: {NOT_UTF8}")
    return SourceUtterance(id_, path, text)


def _id_in(folder: Path, path: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


# Manifests: JSON lines, ours or NeMo's

_MANIFEST_NAMES = ("{}.jsonl", "{}.json", "{}_manifest.json")


def manifest_of_split(folder: Path, split: str) -> Path | None:
    """The manifest of a split in a folder of manifests, if there is one."""
    candidates = (folder / name.format(split) for name in _MANIFEST_NAMES)
    return next((path for path in candidates if path.is_file()), None)


def _manifest_splits(folder: Path) -> list[str]:
    return sorted({path.stem.removesuffix("_manifest") for path in folder.glob("*.json*")})


def _manifest(folder: Path, split: str) -> Iterable[Listed] | None:
    path = manifest_of_split(folder, split)
    if path is None:
        return None
    return (
        Rejected(f"{path.name}:{number}", MALFORMED, f"{path} line {number}: {found}")
        if isinstance(found, str)
        else SourceUtterance(found.id, found.audio_path, found.raw_text, found.speaker, found.language)
        for number, found in scan_manifest(path, need_durations=False)
    )


# Tables: CSV and TSV with a header

_AUDIO_COLUMNS = ("audio_path", "audio_filepath", "path", "file_name", "file", "filename", "audio", "wav")
_TEXT_COLUMNS = ("raw_text", "text", "sentence", "transcript", "transcription")
_ID_COLUMNS = ("id", "utterance_id")
_SPEAKER_COLUMNS = ("speaker", "speaker_id", "client_id")
_LANGUAGE_COLUMNS = ("language", "locale", "lang")


def _table_splits(folder: Path) -> list[str]:
    return sorted({path.stem for path in folder.iterdir() if path.suffix in (".csv", ".tsv")})


def _table(folder: Path, split: str) -> Iterable[Listed] | None:
    for cells, path in ((_cells_of_csv, folder / f"{split}.csv"), (_cells_of_tsv, folder / f"{split}.tsv")):
        if path.is_file():
            return _rows(path, folder, lambda audio: folder / audio, cells)
    return None


def _common_voice(folder: Path, split: str) -> Iterable[Listed] | None:
    path = folder / f"{split}.tsv"
    if not path.is_file():
        return None

    def clip(audio: str) -> Path:  # the first releases omitted the extension
        return folder / "clips" / (audio if Path(audio).suffix.lower() in AUDIO_EXTENSIONS else f"{audio}.mp3")

    return _rows(path, folder / "clips", clip, _cells_of_tsv)


def _cells_of_tsv(line: str) -> list[str]:
    """TSV has no quoting: quotation marks belong to the sentences."""
    return line.split("\t")


_END = "\0"
"""A longer line is not part of a table."""


def _cells_of_csv(line: str) -> list[str]:
    """Cells of one line; a ValueError says what is wrong with it.

    A cell that continues on the next line is refused. This is seldom intended: a single unclosed quotation mark would
    swallow all rows up to the next mark.
    """
    try:
        first, *rest = csv.reader([f"{line}\n", _END])
    except csv.Error as error:
        raise ValueError(f"not a row ({error}); mend it") from None
    if not rest:
        raise ValueError(
            "a quotation mark is not closed on its line; close or double it, and write each row on a line of its own"
        )
    return first


def _rows(
    path: Path, folder: Path, locate: Callable[[str], Path], cells_of: Callable[[str], list[str]]
) -> Iterator[Listed]:
    """The utterances of a table.

    Args:
        path: the table.
        folder: default ids are relative to it.
        locate: gives a recording's path from its cell.
        cells_of: splits a line into cells.
    """
    lines = [(number, line) for number, line in enumerate(read_lines(path), 1) if line.strip()]
    try:
        header = [name.strip().lower() for name in cells_of(lines[0][1])] if lines else []
    except ValueError as error:
        raise DataError(f"{path} line {lines[0][0]}: {error}") from None
    for wanted, names in (("recordings", _AUDIO_COLUMNS), ("transcripts", _TEXT_COLUMNS)):
        if not set(header) & set(names):
            raise DataError(f"{path} has no column of {wanted}: call it one of {', '.join(names)}")
    for number, line in lines[1:]:
        where = f"{path} line {number}"
        try:
            row = _row_of(line, header, cells_of)
        except ValueError as error:
            yield Rejected(where, MALFORMED, f"{where}: {error}")
            continue
        yield _utterance_of(row, where, folder, locate)


def _row_of(line: str, header: list[str], cells_of: Callable[[str], list[str]]) -> dict[str, str]:
    """Cells of a line by their column's name in lower case; a ValueError says what is wrong with it."""
    if not is_utf8(line):
        raise ValueError(NOT_UTF8)
    cells = cells_of(line)
    if any(cell.strip() for cell in cells[len(header) :]):  # a comma or tab in the text would truncate it
        raise ValueError(f"it has {len(cells)} cells, and the header {len(header)}; quote or remove what parts them")
    return dict(zip_longest(header, cells[: len(header)], fillvalue=""))


def _utterance_of(row: dict[str, str], where: str, folder: Path, locate: Callable[[str], Path]) -> Listed:
    """One utterance of a table."""

    def cell(names: Iterable[str]) -> str | None:
        return next((row[name].strip() or None for name in names if name in row), None)

    audio, text = cell(_AUDIO_COLUMNS), cell(_TEXT_COLUMNS)
    if audio is None:
        return Rejected(where, MISSING_AUDIO, f"{where}: it names no recording")
    if text is None:
        return Rejected(where, NO_TRANSCRIPT, f"{where}: it has no transcript")
    audio_path = locate(audio)
    return SourceUtterance(
        id=cell(_ID_COLUMNS) or default_id(audio_path, folder),
        audio_path=audio_path,
        raw_text=text,
        speaker=cell(_SPEAKER_COLUMNS),
        language=cell(_LANGUAGE_COLUMNS),
    )


# Kaldi data directories


def _kaldi_splits(folder: Path) -> list[str]:
    here = ["."] if (folder / "wav.scp").is_file() else []
    return here + sorted(path.parent.name for path in folder.glob("*/wav.scp"))


def kaldi_split(folder: Path, split: str) -> Iterable[Listed] | None:
    """The utterances of `folder/SPLIT`, with `wav.scp` and `text`; None if it does not have them."""
    directory = folder / split
    if not (directory / "wav.scp").is_file():
        return None
    if (directory / "segments").is_file():
        raise DataError(f"{directory}/segments cuts long recordings: write each utterance to a file of its own first")
    return _kaldi_utterances(folder, directory)


def _kaldi_utterances(folder: Path, directory: Path) -> Iterator[Listed]:
    recordings, texts = keyed_lines(directory / "wav.scp"), keyed_lines(directory / "text")
    speakers, languages = keyed_lines(directory / "utt2spk"), keyed_lines(directory / "utt2lang")
    for id_ in sorted(recordings.keys() | texts.keys()):
        audio, text = recordings.get(id_), texts.get(id_)
        speaker, language = speakers.get(id_), languages.get(id_)
        if isinstance(audio, Rejected):
            yield audio
        elif isinstance(text, Rejected):
            yield text
        elif not audio:
            yield Rejected(id_, MISSING_AUDIO, f"{directory}/wav.scp does not list {id_}")
        elif text is None:
            yield Rejected(id_, NO_TRANSCRIPT, f"{directory}/text does not list {id_}")
        elif audio.endswith("|"):
            yield Rejected(id_, MISSING_AUDIO, f"{directory}/wav.scp: {id_} is a command; write its output to a file")
        else:
            yield SourceUtterance(
                id=id_,
                audio_path=_kaldi_path(folder, directory, audio),
                raw_text=text,
                speaker=speaker if isinstance(speaker, str) else None,
                language=language if isinstance(language, str) else None,
            )


def _kaldi_path(folder: Path, directory: Path, audio: str) -> Path:
    """Kaldi's paths are relative to the recipe's working directory, mostly the folder around the data directory."""
    beside = directory / audio
    return beside if beside.is_file() else folder / audio


LAYOUTS = {
    "folder": Corpus(
        layout="recordings in any subfolders, each with NAME.txt beside it; splits: a subfolder's name, or all",
        splits=_folder_splits,
        list_split=_folder,
    ),
    "manifest": Corpus(
        layout="JSON lines, ours or NeMo's, in SPLIT.jsonl, SPLIT.json or SPLIT_manifest.json",
        splits=_manifest_splits,
        list_split=_manifest,
    ),
    "table": Corpus(
        layout="SPLIT.csv or SPLIT.tsv with a header; columns such as path, text, speaker, language",
        splits=_table_splits,
        list_split=_table,
    ),
    "common_voice": Corpus(
        layout="SPLIT.tsv and clips/, the folder of one language as Common Voice's archives unpack",
        splits=lambda folder: [split for split in _table_splits(folder) if (folder / f"{split}.tsv").is_file()],
        list_split=_common_voice,
    ),
    "kaldi": Corpus(
        layout="SPLIT/wav.scp with SPLIT/text and, if known, utt2spk and utt2lang, without segments",
        splits=_kaldi_splits,
        list_split=kaldi_split,
    ),
}
"""Layouts by their names on the command line."""
