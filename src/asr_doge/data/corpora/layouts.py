"""Layouts in which anybody's corpus may come: a plain folder, a manifest, a table, Common Voice, Kaldi.

Promises: one bad line costs one utterance. It says nothing of what is in a corpus; languages and speakers are known
where the files name them.
"""

import csv
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from asr_doge.audio.reading import AUDIO_EXTENSIONS, find_audio_files
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
from asr_doge.data.manifest import scan_manifest
from asr_doge.data.text_files import NOT_UTF8, is_utf8, read_lines
from asr_doge.errors import AudioError, DataError


def keyed_lines(path: Path) -> dict[str, str | Rejected]:
    """Lines of `KEY VALUE`, as Kaldi and LibriSpeech write them; a missing file has none.

    Values that are not UTF-8 are rejected, and so are those of a key that has several.
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
    heard = {path.with_suffix("") for path in paths}
    silent = sorted(path for path in chosen.rglob("*.txt") if path.with_suffix("") not in heard)
    return [_with_text_beside(path, folder) for path in paths] + [
        Rejected(_id_in(folder, path), MISSING_AUDIO, f"{path} has no recording of its name beside it")
        for path in silent
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
    for delimiter, path in ((",", folder / f"{split}.csv"), ("\t", folder / f"{split}.tsv")):
        if path.is_file():
            return _rows(path, lambda audio: folder / audio, csv.DictReader(_with_ends(path), delimiter=delimiter))
    return None


def _common_voice(folder: Path, split: str) -> Iterable[Listed] | None:
    path = folder / f"{split}.tsv"
    if not path.is_file():
        return None

    def clip(audio: str) -> Path:  # the first releases left the ending out
        return folder / "clips" / (audio if Path(audio).suffix.lower() in AUDIO_EXTENSIONS else f"{audio}.mp3")

    # Its quotation marks are those of the sentences.
    return _rows(path, clip, csv.DictReader(_with_ends(path), delimiter="\t", quoting=csv.QUOTE_NONE))


def _with_ends(path: Path) -> Iterator[str]:
    """Lines as the csv module wants them, which joins those of a quoted cell."""
    return (line + "\n" for line in read_lines(path))


def _rows(path: Path, locate: Callable[[str], Path], reader: "csv.DictReader[str]") -> Iterator[Listed]:
    """The utterances of a table; `locate` finds a recording by what its cell says."""
    try:
        columns = {(name or "").strip().lower(): name for name in reader.fieldnames or ()}
        for wanted, names in (("recordings", _AUDIO_COLUMNS), ("transcripts", _TEXT_COLUMNS)):
            if not columns.keys() & set(names):
                raise DataError(f"{path} has no column of {wanted}: call it one of {', '.join(names)}")
        for row in reader:
            yield _row(row, columns, f"{path} line {reader.line_num}", locate)
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num}: not a table ({error}); mend the line") from None


def _row(row: dict[str, str], columns: dict[str, str], where: str, locate: Callable[[str], Path]) -> Listed:
    """One utterance; `columns` are the table's by their lower-case names."""

    def cell(names: Iterable[str]) -> str | None:
        column = next((columns[name] for name in names if name in columns), None)
        return (row[column] or "").strip() or None if column is not None else None

    audio, text = cell(_AUDIO_COLUMNS), cell(_TEXT_COLUMNS)
    if not all(is_utf8(value) for value in row.values() if isinstance(value, str)):
        return Rejected(where, MALFORMED, f"{where}: {NOT_UTF8}")
    if audio is None:
        return Rejected(where, MISSING_AUDIO, f"{where}: it names no recording")
    if text is None:
        return Rejected(where, NO_TRANSCRIPT, f"{where}: it has no transcript")
    audio_path = locate(audio)
    return SourceUtterance(
        id=cell(_ID_COLUMNS) or audio_path.stem,
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
    """The utterances of `folder/SPLIT`, which has `wav.scp` and `text`; None if it has not."""
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
    """Kaldi names recordings from wherever its recipe runs, most often from the folder around the data directory."""
    beside = directory / audio
    return beside if beside.is_file() else folder / audio


LAYOUTS = {
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
    "table": Corpus(
        layout="SPLIT.csv or SPLIT.tsv with a header; columns such as path, text, speaker, language",
        default_splits=("train", "dev", "test"),
        splits=_table_splits,
        list_split=_table,
    ),
    "common_voice": Corpus(
        layout="SPLIT.tsv and clips/, the folder of one language as Common Voice's archives unpack",
        default_splits=("train", "dev", "test"),
        splits=lambda folder: [split for split in _table_splits(folder) if (folder / f"{split}.tsv").is_file()],
        list_split=_common_voice,
    ),
    "kaldi": Corpus(
        layout="SPLIT/wav.scp with SPLIT/text and, if known, utt2spk and utt2lang, without segments",
        default_splits=("train", "dev", "test"),
        splits=_kaldi_splits,
        list_split=kaldi_split,
    ),
}
"""Layouts by their names on the command line."""
