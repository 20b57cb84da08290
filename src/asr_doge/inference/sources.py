"""Accept what a caller may pass as a recording, and give it as blocks of mono samples.

Promises: it takes files by name or path; the content of a file as bytes, or an open file; samples as arrays, tensors or
lists of numbers, or with their rate as `{"array": …, "sampling_rate": …}`; `BlockSource`; and `ChunkSource`. Anything
else raises one `AudioError` that says what to pass. `as_sources` distinguishes one recording from several. Open files
are read from their current position, or, at their end, from their start, and are not closed. It decodes nothing itself
(see `asr_doge.audio`).
"""

import io
import os
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice
from numbers import Number
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from asr_doge.audio.arrays import prepare_waveform
from asr_doge.audio.reading import read_blocks
from asr_doge.audio.resampling import checked_rate
from asr_doge.audio.sound import Note, log_note
from asr_doge.errors import AudioError
from asr_doge.inference.chunking import Chunk


@dataclass(frozen=True)
class BlockSource:
    """A recording that the caller decodes.

    Attributes:
        read: gives the blocks, `[samples]` each, mono, at the model's sampling rate. It passes remarks to its argument,
            and raises errors as `read_blocks` does.
        name: of the recording, for messages.
    """

    read: Callable[[Note], Iterable[NDArray[np.float32]]]
    name: str = "recording"


@dataclass(frozen=True)
class ChunkSource:
    """A recording that the caller decodes and cuts into chunks.

    Attributes:
        read: gives pairs: the number of samples so far, and the chunk that they complete, if any. It passes remarks to
            its argument, and raises errors as `read_blocks` does.
        name: of the recording, for messages.
    """

    read: Callable[[Note], Iterable[tuple[int, Chunk | None]]]
    name: str


Source: TypeAlias = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | BinaryIO
    | io.IOBase
    | NDArray[Any]
    | Tensor
    | Mapping[str, Any]
    | BlockSource
    | ChunkSource
)
"""A recording: a file's name or path, its content, or the file opened for binary reading; or a mono waveform
`[samples]` (or `[channels, samples]`), alone or with its rate as in Hugging Face's `datasets`; or blocks or chunks of
one."""


@dataclass(frozen=True)
class SourceWithOptions:
    """A recording with its language, rate and channel.

    Attributes:
        source: the recording.
        language: spoken in it; None if it is not known.
        sampling_rate: of its samples, in Hz; None for the transcriber's. Files state their own.
        channel: the one to read, from 0; None for the mean of all.
    """

    source: Source
    language: str | None = None
    sampling_rate: float | None = None
    channel: int | None = None


def with_defaults(
    given: Source | SourceWithOptions, language: str | None, sampling_rate: float | None
) -> SourceWithOptions:
    """A recording with the language and the rate that hold for all, unless it has its own."""
    if not isinstance(given, SourceWithOptions):
        return SourceWithOptions(given, language, sampling_rate)
    return given if given.sampling_rate is not None else replace(given, sampling_rate=sampling_rate)


PASS_INSTEAD = "pass a file, its bytes, samples, or a list of such"


def as_sources(given: Any) -> tuple[Iterable[Any], bool]:
    """The recordings that a caller passed, and whether the argument was a single recording.

    A sequence or generator of numbers is one recording; any other holds one recording per element.
    """
    if _is_one(given) or _is_pair(given):
        return [given], True
    try:
        items = iter(given)
    except TypeError:
        return [given], True  # an unsupported type raises when it is read
    first = list(islice(items, 1))
    if first and _is_number(first[0]):
        return [[*first, *items]], True
    return chain(first, items), False


def path_of(source: Any) -> Path | None:
    """The file, if the source names one."""
    if isinstance(source, Mapping) and source.get("array") is None and source.get("bytes") is None:
        source = source.get("path")
    return Path(os.fsdecode(source)) if isinstance(source, str | os.PathLike) else None


def source_blocks(
    source: Any,
    sampling_rate: int,
    source_rate: float | None = None,
    channel: int | None = None,
    on_note: Note = log_note,
) -> Iterator[NDArray[np.float32]]:
    """A recording block by block.

    Args:
        source: see `Source`.
        sampling_rate: wanted rate, in Hz.
        source_rate: rate of the samples, in Hz; default, `sampling_rate`. Files state their own.
        channel, on_note: as in `read_blocks`.

    Raises:
        AudioError: as in `read_blocks` and `prepare_waveform`; or `source` has an unsupported type.
    """
    if isinstance(source, BlockSource):
        yield from source.read(on_note)
        return
    if isinstance(source, Mapping):
        source, source_rate = _of_dataset(source, source_rate)
    path = path_of(source)
    if path is not None:
        yield from read_blocks(_checked(path), sampling_rate, channel, on_note)
    elif isinstance(source, bytes | bytearray) or (isinstance(source, memoryview) and source.format == "B"):
        yield from _spooled_blocks(io.BytesIO(source), "what was passed as bytes", sampling_rate, channel, on_note)
    elif hasattr(source, "read"):
        yield from _spooled_blocks(source, _name_of(source), sampling_rate, channel, on_note)
    elif _is_pair(source):
        raise AudioError("a pair of samples and a sampling rate was passed: pass the samples, and sampling_rate=.")
    elif _is_array(source) or isinstance(source, list | tuple | memoryview | array):
        rate = sampling_rate if source_rate is None else checked_rate(source_rate)
        yield prepare_waveform(source, rate, sampling_rate, "array", channel, on_note)
    else:
        raise AudioError(f"{type(source).__name__} is nothing that can be transcribed: {PASS_INSTEAD}.")


def _is_one(given: Any) -> bool:
    """Whether it is a single recording, whatever it contains."""
    if isinstance(
        given, str | os.PathLike | bytes | bytearray | memoryview | array | Mapping | BlockSource | ChunkSource
    ):
        return True
    return hasattr(given, "read") or (_is_array(given) and _holds_numbers(given))


def _is_array(source: Any) -> bool:
    return hasattr(source, "__array__") or hasattr(source, "detach") or hasattr(source, "__array_interface__")


def _holds_numbers(array: Any) -> bool:
    """Whether an array has samples; an array of names or of arrays has recordings instead."""
    return getattr(getattr(array, "dtype", None), "kind", "f") not in "OUST"


def _is_number(value: Any) -> bool:
    """Whether it can be a sample; an array without axes is one."""
    return isinstance(value, Number) or (getattr(value, "ndim", None) == 0 and not isinstance(value, str | bytes))


def _is_pair(given: Any) -> bool:
    """Whether it is a pair of samples and rate, as other libraries use; it looks like two recordings."""
    if not isinstance(given, list | tuple) or len(given) != 2:
        return False
    return any(map(_is_number, given)) and not all(map(_is_number, given))


def _checked(path: Path) -> Path:
    """The path, if a file can have it."""
    text = str(path)
    if "\0" in text:
        raise AudioError(f"{text!r} is no name of a file, as it holds a null character: correct the path.")
    if (scheme := text.partition(":/")[0]) in ("http", "https", "ftp", "s3", "gs", "file") and ":/" in text:
        raise AudioError(f"{text} is an address ({scheme}): fetch the file, and pass its path.")
    return path


def _of_dataset(source: Mapping[str, Any], source_rate: float | None) -> tuple[Any, float | None]:
    """Samples and rate of a mapping in the form of `datasets`' `Audio` feature or of transformers' pipelines."""
    for name in ("array", "raw"):
        if source.get(name) is not None:
            rate = source.get("sampling_rate", source_rate)
            if rate is None:
                raise AudioError(f'a mapping with "{name}" has no "sampling_rate": add it, in Hz.')
            return source[name], rate
    for name in ("bytes", "path"):
        if source.get(name) is not None:
            return source[name], source_rate
    raise AudioError(f'a mapping needs "array" and "sampling_rate", or "bytes" or "path": {PASS_INSTEAD}.')


def _name_of(file: Any) -> str:
    name = getattr(file, "name", None)
    return str(name) if isinstance(name, str) and name else f"the open {type(file).__name__}"


def _spooled_blocks(
    file: Any, name: str, sampling_rate: int, channel: int | None, on_note: Note
) -> Iterator[NDArray[np.float32]]:
    """Blocks of an open file, copied to disk first since decoders need to seek."""
    with tempfile.TemporaryDirectory(prefix="asr-doge-") as folder:
        path = Path(folder) / "recording"
        _copy(file, path, name)
        try:
            yield from read_blocks(path, sampling_rate, channel, lambda note: on_note(note.replace(str(path), name)))
        except AudioError as error:
            raise type(error)(str(error).replace(str(path), name)) from None


def _copy(file: Any, path: Path, name: str) -> None:
    """Copy the rest of an open file, or all of it if it stands at its end."""
    if isinstance(file, io.TextIOBase):
        raise AudioError(f"{name} is open as text: open it with mode 'rb'.")
    try:
        with path.open("wb") as copy:
            shutil.copyfileobj(file, copy)
            if copy.tell() == 0 and getattr(file, "seekable", lambda: False)():
                file.seek(0)  # at its end, as after writing to it
                shutil.copyfileobj(file, copy)
    except TypeError:
        raise AudioError(f"{name} gives no bytes when it is read: open it with mode 'rb'.") from None
    except (ValueError, OSError) as error:  # closed, or not opened for reading; or the disk is full
        reason = getattr(error, "strerror", None) or str(error)
        raise AudioError(f"{name} cannot be read ({reason}): open it with mode 'rb', and keep it open.") from None
