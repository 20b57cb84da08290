"""Stream Hugging Face datasets to a folder that `process --dataset manifest` reads.

Promises: recordings are stored as they arrive, undecoded, so our own reader decodes them and nothing else is needed; an
interrupted run continues where it stopped; `SPLIT.jsonl` appears when everything requested is there. If that was only a
part of the split, `SPLIT.jsonl.part` stays beside it, so that a later run can fetch the rest. It needs the `datasets`
extra, and holds one utterance at a time in memory.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
from huggingface_hub import HfApi

from asr_doge.data.atomic_writing import write_atomically
from asr_doge.data.configuration import DownloadConfig
from asr_doge.data.transfer import PART_SUFFIX
from asr_doge.errors import ConfigError, DataError, first_line
from asr_doge.progress import progress_bar

HUB_PREFIX = "hub:"
TIMEOUT_SECONDS = 10.0
"""Seconds after which a hub that does not begin to answer counts as unreachable."""

_TEXT_COLUMNS = ("text", "sentence", "transcription", "transcript", "normalized_text", "raw_text")
_ID_COLUMNS = ("id", "utterance_id", "segment_id")
_SPEAKER_COLUMNS = ("speaker", "speaker_id", "client_id")
_LANGUAGE_COLUMNS = ("language", "locale", "lang")


def hub_splits(dataset: str, subset: str | None) -> list[str]:
    """Names of a dataset's splits.

    Raises:
        ConfigError: the `datasets` extra is not installed.
        DataError: no such dataset, or it cannot be reached.
    """
    datasets = _library()
    _check_reachable(dataset)
    try:
        names: list[str] = datasets.get_dataset_split_names(dataset, subset)
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreachable(dataset, error) from error
    return names


def fetch_hub_split(dataset: str, split: str, folder: Path, config: DownloadConfig) -> bool:
    """Write `folder/SPLIT.jsonl` and its recordings; returns whether there was anything left to do.

    Raises:
        ConfigError: the `datasets` extra is not installed.
        DataError: no such dataset or split, no column of audio or of transcripts, or the output cannot be written.
    """
    manifest = folder / f"{split}.jsonl"
    part = manifest.with_name(manifest.name + PART_SUFFIX)
    if manifest.exists() and _is_enough(manifest, part, config.max_utterances):
        return False
    _library()
    _check_reachable(dataset)
    lines = _whole_lines(part)
    try:
        examples, columns = _stream(dataset, split, config, skip=len(lines))
        folder.mkdir(parents=True, exist_ok=True)
        with part.open("a", encoding="utf-8") as file:
            for number, example in enumerate(progress_bar(examples, desc=split, initial=len(lines)), len(lines)):
                audio_path = _write_audio(example[columns["audio"]], folder, f"audio/{split}/{number:08d}")
                file.write(_line(example, columns, audio_path, f"{split}-{number:08d}"))
                file.flush()
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreachable(f"{dataset}, split {split}", error) from error
    if not part.stat().st_size:
        part.unlink()
        raise DataError(f"hub:{dataset} has nothing in split {split}: choose another with --splits")
    fetched = part.read_bytes()
    if config.max_utterances is not None and fetched.count(b"\n") >= config.max_utterances:
        write_atomically(manifest, fetched)  # there may be more, so the part file stays
    else:
        part.replace(manifest)
    return True


def _is_enough(manifest: Path, part: Path, max_utterances: int | None) -> bool:
    """Whether a split fetched before has what is requested: it is complete, or has as many utterances."""
    if not part.exists():
        return True
    return max_utterances is not None and manifest.read_bytes().count(b"\n") >= max_utterances


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise ConfigError("hub: needs Hugging Face datasets: pip install 'asr-doge[datasets]'") from None
    return datasets


def _check_reachable(dataset: str) -> None:
    """Ask the hub for a dataset once: without an answer, the libraries would retry for minutes and print every try."""
    if Path(dataset).is_dir():
        return
    try:
        HfApi().dataset_info(dataset, timeout=TIMEOUT_SECONDS)
    except Exception as error:  # of the hub's HTTP library too, which differs by its version
        raise _unreachable(dataset, error) from error


def _stream(
    dataset: str, split: str, config: DownloadConfig, skip: int
) -> tuple[Iterator[dict[str, Any]], dict[str, str]]:
    """Examples after the first `skip`, with undecoded audio, and their columns for the fields of a manifest."""
    datasets = _library()
    stream = datasets.load_dataset(dataset, config.subset, split=split, streaming=True)
    if stream.features is None:
        stream = stream._resolve_features()  # reads the start of the first file; there is no public function
    audio = next((name for name, kind in stream.features.items() if isinstance(kind, datasets.Audio)), None)
    if audio is None:
        raise DataError(f"hub:{dataset} has no column of audio: its columns are {', '.join(stream.features)}")
    columns = {"audio": audio}
    wanted = {
        "text": (config.text_column,) if config.text_column else _TEXT_COLUMNS,
        "id": _ID_COLUMNS,
        "speaker": _SPEAKER_COLUMNS,
        "language": _LANGUAGE_COLUMNS,
    }
    for field, names in wanted.items():
        if present := [name for name in names if name in stream.features]:
            columns[field] = present[0]
    if "text" not in columns:
        raise DataError(f"hub:{dataset}: name the transcripts with --text_column, one of {', '.join(stream.features)}")
    stream = _undecoded(stream, audio)
    if config.max_utterances is not None:
        stream = stream.take(config.max_utterances)
    return iter(stream.skip(skip)), columns


def _undecoded(stream: Any, audio: str) -> Any:
    """The stream with its recordings undecoded: bytes, or paths of files."""
    datasets = _library()
    as_bytes = stream.cast_column(audio, datasets.Audio(decode=False))
    try:
        next(iter(as_bytes), None)
    except ImportError:  # datasets wants torchcodec even to pass on the paths of files
        return stream.cast_column(audio, datasets.Value("string"))
    return as_bytes


def _write_audio(audio: dict[str, Any] | str, folder: Path, name: str) -> str:
    """Write a recording under a name of our own, since the original may be anything; returns the path in `folder`."""
    stored: dict[str, Any] = {"path": audio} if isinstance(audio, str) else audio
    content, path = stored.get("bytes"), stored.get("path") or ""
    if content is None:
        with fsspec.open(path, "rb") as file:  # a local file, or hf:// and the like
            content = file.read()
    relative = f"{name}{Path(path).suffix.lower()}"
    write_atomically(folder / relative, content)
    return relative


def _line(example: dict[str, Any], columns: dict[str, str], audio_path: str, default_id: str) -> str:
    fields = {field: example[column] for field, column in columns.items() if field != "audio"}
    known = {field: str(value) for field, value in fields.items() if value is not None}
    return json.dumps({"id": default_id, "audio_path": audio_path, "text": "", **known}, ensure_ascii=False) + "\n"


def _whole_lines(part: Path) -> list[bytes]:
    """Lines that an interrupted run completed; an incomplete one is cut off."""
    if not part.exists():
        return []
    lines = [line for line in part.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    write_atomically(part, b"".join(lines))
    return lines


def _unreachable(dataset: str, error: Exception) -> DataError:
    return DataError(f"hub:{dataset} cannot be had: {first_line(error)}; check the name and the network, and run again")
