"""A folder of transcripts: one file per recording and format, and a journal of what each was made from.

Promises: every file is written completely or not at all; two recordings never share a file, whatever their names; a
file is kept if it was made from the same recording (path, size, modification time) by the same model and settings, or
if this package did not write it. The journal is the file `JOURNAL` in the folder, with one line of JSON per recording,
written after the recording's files.
It does not transcribe, and does not know the content of the formats.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from asr_doge.data.atomic_writing import LONGEST_NAME_BYTES, check_writable, write_atomically
from asr_doge.errors import ConfigError, DataError
from asr_doge.inference.output import ENDINGS, ctm_names, ctm_rows, distinct_names, document, without_ending
from asr_doge.inference.results import Transcription
from asr_doge.models.checkpoints import BUNDLED_MODELS

JOURNAL = ".asr-doge-transcripts.jsonl"
"""Name of the journal: what each file was made from."""
_LONGEST_STEM_BYTES = LONGEST_NAME_BYTES - max(map(len, ENDINGS.values()))

State = Literal["missing", "done", "changed", "foreign"]


class OutputFolder:
    """Transcripts named after their recordings.

    Recordings with the same name in one folder (`a.wav` and `a.mp3`) keep their extensions: `a.wav.srt`, `a.mp3.srt`.
    Those with the same name in several folders keep the part of the path that differs: `d1/a.srt`, `d2/a.srt`.

    Args:
        folder: where to write; created with the first file.
        formats: of `FORMATS`.
        model: name of the model, for JSON.
        targets: for each recording, its name within the folder, a relative path.
        settings: everything else the texts depend on, in JSON types.
        overwrite: whether to redo everything, and replace files that this package did not write.

    Raises:
        ConfigError: the folder is a file.
        DataError: it cannot be written to.
    """

    def __init__(
        self,
        folder: Path,
        formats: Sequence[str],
        model: str,
        targets: Mapping[Path, Path],
        settings: Mapping[str, Any] | None = None,
        *,
        overwrite: bool = False,
    ) -> None:
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"--output_dir {folder} is a file: choose a folder")
        check_writable(folder)
        self._folder, self._formats, self._model = folder, formats, model
        self._overwrite = overwrite
        self._stems = {path: _fitting(Path(name)) for path, name in distinct_names(_candidates(targets)).items()}
        self._ctm_names = ctm_names(targets, targets)
        made_by = {"model": model_identity(model), "settings": json.loads(json.dumps(settings or {}))}
        self._origins = {path: _origin(path, made_by) for path in targets}
        self._journal = _read_journal(folder / JOURNAL)

    def files(self, path: Path, channel: int | None = None) -> list[Path]:
        """The files of a recording, or of one of its channels (from 1), in the order of the formats."""
        stem = self._stems[path]
        if channel is not None:
            stem = _fitting(stem.with_name(f"{stem.name}.channel{channel}"))
        return [self._folder / stem.with_name(stem.name + ENDINGS[name]) for name in self._formats]

    def state(self, path: Path, channel: int | None = None) -> State:
        """State of the files of a recording, or of one of its channels (from 1).

        `missing`: a file is not there; `foreign`: all are, and this package did not write one of them; `changed`: they
        were made from another recording, by another model or with other settings; `done`: they are up to date.
        """
        states = [self._file_state(path, file) for file in self.files(path, channel)]
        order: tuple[State, ...] = ("missing", "changed", "foreign", "done")
        return next(state for state in order if state in states)

    def is_done(self, path: Path, channel: int | None = None) -> bool:
        """Whether a recording, or one of its channels (from 1), needs no work."""
        return not self._overwrite and self.state(path, channel) in ("done", "foreign")

    def write(self, result: Transcription) -> list[Path]:
        """Write the files of a recording; returns their paths.

        Raises:
            DataError: a file cannot be written.
        """
        assert result.path is not None
        written = []
        for name, file in zip(self._formats, self.files(result.path, result.channel), strict=True):
            if not self._overwrite and self._file_state(result.path, file) == "foreign":
                continue
            # A name that is not UTF-8 may occur in JSON or a table.
            write_atomically(file, self._content(result, name).encode("utf-8", "backslashreplace"))
            written.append(file)
        self._note(result.path, written)
        return written

    def _content(self, result: Transcription, output_format: str) -> str:
        if output_format != "ctm" or result.path is None:
            return document(result, output_format, self._model)
        return "".join(f"{row}\n" for row in ctm_rows(result, self._ctm_names[result.path]))

    def _file_state(self, path: Path, file: Path) -> State:
        if not os.path.isfile(file):  # noqa: PTH113 - False too where Path.is_file raises
            return "missing"
        known = self._journal.get(self._name(file))
        if known is None:
            return "foreign"
        return "done" if known == self._origins[path] else "changed"

    def _name(self, file: Path) -> str:
        return file.relative_to(self._folder).as_posix()

    def _note(self, path: Path, files: Sequence[Path]) -> None:
        """Add to the journal what files were made from."""
        origin, names = self._origins[path], [self._name(file) for file in files]
        if origin is None or not names:
            return
        journal = self._folder / JOURNAL
        line = json.dumps({"files": names} | origin)  # ASCII, so that any file name can be written
        try:
            with journal.open("a+b") as file:
                is_torn = file.tell() > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
                file.write(b"\n" * is_torn + line.encode() + b"\n")
        except OSError as error:
            raise DataError(
                f"{journal} cannot be written ({error.strerror}): check the folder and the space"
            ) from error
        self._journal |= dict.fromkeys(names, origin)


def model_identity(model: str) -> str:
    """Identity of a model: its name, and of its files what changes when it is trained anew.

    That is, for a folder, their names, sizes and modification times; for a bundled model their names and content, since
    installing the same package again gives other times.

    Args:
        model: a folder, hub id or bundled name.
    """
    folder = BUNDLED_MODELS.get(model, Path(model))
    if not os.path.isdir(folder):  # noqa: PTH112 - False too where Path.is_dir raises
        return model
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            status = path.stat()
            times = "" if model in BUNDLED_MODELS else f" {status.st_mtime_ns}"
            digest.update(f"{path.relative_to(folder)} {status.st_size}{times}\n".encode(errors="replace"))
            if model in BUNDLED_MODELS:
                digest.update(path.read_bytes())
    name = model if model in BUNDLED_MODELS else os.path.abspath(model)  # noqa: PTH100 - `resolve` would follow links
    return f"{name} {digest.hexdigest()[:16]}"


def _candidates(targets: Mapping[Path, Path]) -> dict[Path, list[str]]:
    """Candidate names within the folder for each recording, best first; each is a path without a format's extension."""
    candidates = {}
    for path, name in targets.items():
        parents = Path(os.path.abspath(path)).parts[1:-1]  # noqa: PTH100 - as above
        outside = parents[: max(len(parents) - len(name.parts) + 1, 0)]
        longer = [Path(*outside[-count:], name) for count in range(1, len(outside) + 1)]
        forms = [without_ending(name), name, *map(without_ending, longer), *longer[-1:]]
        candidates[path] = [form.as_posix() for form in forms]
    return candidates


def _fitting(stem: Path) -> Path:
    """`stem` itself, or, if it is too long for a file name, its beginning and a digest of all of it."""
    name = os.fsencode(stem.name)
    if len(name) <= _LONGEST_STEM_BYTES:
        return stem
    ending = f"~{hashlib.sha256(name).hexdigest()[:8]}"
    beginning = name[: _LONGEST_STEM_BYTES - len(ending)].decode(errors="ignore")  # not within a character
    return stem.with_name(beginning + ending)


def _origin(path: Path, made_by: dict[str, Any]) -> dict[str, Any] | None:
    """The recording's file, its size and time, and `made_by`; None if there is no such file."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    source = os.path.abspath(path)  # noqa: PTH100 - as above
    return {"source": source, "size": status.st_size, "changed_ns": status.st_mtime_ns} | made_by


def _read_journal(path: Path) -> dict[str, dict[str, Any]]:
    """The origin of each file; a line truncated by a killed run is ignored."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): change its permissions, or remove it") from None
    known: dict[str, dict[str, Any]] = {}
    for line in lines:
        try:
            origin = json.loads(line)
            known |= dict.fromkeys(origin.pop("files"), origin)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return known
