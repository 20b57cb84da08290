"""List the input of a job: recordings in folders, globs, manifests, tar files and Parquet, here or behind a URL.

Promises: the list is complete and in an order that depends only on what is there, each item once; each item has
the position of its bytes and a stamp of its source (size and time, or the store's etag), so that a change is noticed. A
source that cannot be listed is one `DataError` line. It decodes nothing.

Folders and globs are searched for the endings of `asr_doge.audio.folders`. Manifests (`.json`, `.jsonl`) are ours or
NeMo's; `offset` and `duration` choose a part of a recording. Of a tar file (WebDataset, NeMo's tarred sets) every
member with such an ending is an item; of a Parquet file every row's `audio` (`bytes`, or `path`). A folder of lhotse
Shar has `cuts.NUMBER.jsonl.gz` and `recording.NUMBER.tar` for each of its shards, with the cuts' sound in their order.
"""

import glob
import gzip
import json
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from asr_doge.audio.folders import AUDIO_EXTENSIONS, find_audio_files
from asr_doge.data.stores import http_status, is_url, is_web, one_line, open_filesystem
from asr_doge.errors import AudioError, DataError

_MANIFESTS = (".json", ".jsonl")
_SOUGHT = frozenset([*AUDIO_EXTENSIONS, ".tar", ".parquet", ".jsonl"])
"""Endings that a pattern is taken to mean, unless it matches none of them."""
_VERSIONS = ("ETag", "etag", "md5Hash", "Content-MD5", "mtime", "LastModified", "Last-Modified")
"""Names that stores and web servers have for a file's version, the most reliable first."""
_SHORTER_SECONDS = 0.001
"""A lhotse cut that is shorter than its audio by more than this is a part of it."""


class FetchError(AudioError):
    """Raised if the bytes of a recording that exists cannot be fetched, perhaps only now."""


class DeniedError(FetchError):
    """Raised if a store denies access: to any recording if credentials have expired, or to this one."""


@dataclass(frozen=True)
class Item:
    """A recording, or a part of one.

    Attributes:
        url: path or URL of the file that it is in.
        stamp: version of the file (size and time, or the store's etag); empty if unknown.
        member: its name in a tar file, or the number of its row in a Parquet file; empty if it is the file.
        start, size: position of its bytes in a tar file, and their number.
        offset: start in the recording, in seconds.
        duration: its length in seconds; None for the rest of the recording.
    """

    url: str
    stamp: str = ""
    member: str = ""
    start: int = 0
    size: int = 0
    offset: float = 0.0
    duration: float | None = None

    @property
    def name(self) -> str:
        """Name in the output and in messages."""
        return f"{self.url}#{self.member}" if self.member else self.url

    @property
    def title(self) -> str:
        """The name, with the offset if the item is a part of a recording."""
        return f"{self.name} at {self.offset:g} s" if self.is_part else self.name

    @property
    def is_part(self) -> bool:
        """Whether it is a part of a recording."""
        return self.offset > 0 or self.duration is not None


def path_of(name: str) -> str:
    """A path or URL without a web server's query, in which signed URLs have their keys."""
    return name.partition("#")[0].partition("?")[0] if is_web(name) else name


def _ending(name: str) -> str:
    return PurePosixPath(path_of(name)).suffix.lower()


def list_items(sources: Sequence[str]) -> list[Item]:
    """The recordings that sources hold, in their order; one that is named twice is listed once.

    Raises:
        DataError: a source is missing, unreadable, malformed or without recordings.
    """
    return list(dict.fromkeys(item for source in sources for item in _listed(source)))


def _listed(source: str) -> Iterable[Item]:
    if not source:
        raise DataError("an argument is empty: name a recording, or . for this folder")
    if is_url(source):
        return _listed_remote(source)
    if os.path.isdir(source):  # noqa: PTH112 - False where Path.is_dir raises, as for a name too long
        return _of_folder(source)
    if not os.path.lexists(source) and glob.has_magic(source):
        matches = glob.glob(source, recursive=True)  # noqa: PTH207 - a pattern may be absolute
        found = sorted({os.path.normpath(path) for path in matches})
        if not found:
            raise DataError(f"{source} matches nothing: check the pattern")
        found = [path for path in found if Path(path).is_dir() or Path(path).suffix.lower() in _SOUGHT] or found
        return [item for path in found for item in _listed(glob.escape(path) if glob.has_magic(path) else path)]
    return _held(source, _local(source))


def _of_folder(folder: str) -> Iterable[Item]:
    """The recordings in a folder and below it; if there are none, Shar, or what its tar and Parquet files hold."""
    try:
        return [_local(path) for path in find_audio_files(folder)]
    except AudioError as error:
        files = []
        with suppress(OSError):  # which is the reason, then
            files = [_local(path) for path in sorted(Path(folder).iterdir())]
        if _is_shar(files):
            return _of_shar(files)
        held = [file for file in files if _ending(file.url) in (".tar", ".parquet")]
        if not held:
            raise DataError(str(error)) from None
        return [item for file in held for item in _held(file.url, file)]


def _local(path: str | os.PathLike[str]) -> Item:
    name = os.fspath(path)
    try:
        status = Path(name).stat()
    except (OSError, ValueError):
        return Item(name, "missing")  # which is reported in its place
    return Item(name, f"{status.st_size}-{status.st_mtime_ns}")


def _held(name: str, file: Item) -> Iterable[Item]:
    """The items in a file: itself, or those that it lists or holds."""
    ending = _ending(name)
    if ending in _MANIFESTS:
        return _of_manifest(file)
    if ending == ".tar":
        return _of_tar(file)
    if ending == ".parquet":
        return _of_parquet(file)
    return [file]


def _listed_remote(url: str) -> list[Item]:
    """Recordings at a URL: a file, a folder, or a glob."""
    filesystem, path = open_filesystem(url)
    scheme = url.partition("://")[0]
    is_pattern = "*" in path_of(url) if is_web(url) else glob.has_magic(path)  # a web server's ? begins a query
    try:
        filesystem.invalidate_cache()
        # To ask a web server whether a URL is a folder would fetch the whole file.
        is_folder = not is_pattern and (path_of(url).endswith("/") if is_web(url) else filesystem.isdir(path))
        if is_pattern:
            found = filesystem.glob(path, detail=True)
        elif is_folder:
            found = filesystem.find(path, detail=True)
        else:
            found = {path: filesystem.info(path)}
    except Exception as error:  # each cloud's client has its own errors
        fault = true_error(url, error)
        if isinstance(fault, FileNotFoundError):
            raise DataError(f"{url} does not exist: check the URL") from None
        raise DataError(f"{url} cannot be listed ({one_line(fault)}): check the URL and your credentials") from error
    found = {name: info for name, info in sorted(found.items()) if info.get("type") == "file"}
    files = [
        Item(name if is_url(name) else f"{scheme}://{name.lstrip('/')}", _remote_stamp(info))
        for name, info in found.items()
    ]
    if _is_shar(files):
        return list(_of_shar(files))
    if len(files) > 1 or is_folder:
        sought = [file for file in files if _ending(file.url) in _SOUGHT]
        files = sought if is_folder else sought or files
    if not files:
        raise DataError(f"{url} holds no recordings: check the URL")
    return [item for file in files for item in _held(file.url, file)]


def true_error(url: str, error: Exception) -> Exception:
    """The actual error at a URL; fsspec reports any refusal of a web server as a missing file."""
    while is_web(url) and isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return FileNotFoundError(url) if http_status(error) in (404, 410) else error


def _remote_stamp(info: dict[str, Any]) -> str:
    version = next((str(info[key]) for key in _VERSIONS if info.get(key)), "")
    size = info.get("size")
    return f"{'' if size is None else size}-{version.strip(chr(34))}"


def open_bytes(name: str, is_whole: bool = False) -> BinaryIO:
    """A file, for reading its bytes.

    Args:
        name: its path or URL.
        is_whole: whether it is read from its beginning to its end only; a web server need not give out parts, then.

    Raises:
        Exception: as the file system says it.
    """
    if not is_url(name):
        return Path(name).open("rb")
    filesystem, path = open_filesystem(name)
    options = {"block_size": 0} if is_whole and is_web(name) else {}
    return cast(BinaryIO, filesystem.open(path, "rb", **options))


def _open(name: str, is_whole: bool = False) -> BinaryIO:
    """A file for reading bytes; one that is read whole is copied here from a URL.

    Raises:
        DataError: it cannot be opened, or not be copied.
    """
    try:
        if not is_whole or not is_url(name):
            return open_bytes(name)
        copy = tempfile.TemporaryFile(prefix="asr-doge-")  # noqa: SIM115 - the caller closes it
        with open_bytes(name, is_whole=True) as file:
            shutil.copyfileobj(file, copy)
        copy.seek(0)
        return cast(BinaryIO, copy)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{name} cannot be read: {one_line(true_error(name, error))}") from error


def _of_manifest(manifest: Item) -> Iterator[Item]:
    """The recordings that a manifest lists; for parts, the manifest's own stamp counts too."""
    path = path_of(manifest.url)
    folder = path.rpartition("/")[0] if "/" in path else "."
    with _open(manifest.url, is_whole=True) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield _of_line(line, folder)
                except ValueError as error:
                    raise DataError(f"{manifest.url} line {number}: {error}") from None


def _of_line(line: bytes, folder: str) -> Item:
    try:
        fields = json.loads(line)
    except ValueError:
        raise ValueError("not JSON in UTF-8; write one object a line") from None
    name = (fields.get("audio_path") or fields.get("audio_filepath")) if isinstance(fields, dict) else None
    if not isinstance(name, str):
        raise ValueError('no "audio_path"; name the recording')
    offset, duration = fields.get("offset") or 0.0, fields.get("duration")
    if not isinstance(offset, int | float) or not 0 <= offset < float("inf"):
        raise ValueError('"offset" is not a number of seconds from 0')
    if duration is not None and (not isinstance(duration, int | float) or not 0 < duration < float("inf")):
        raise ValueError('"duration" is not a positive number of seconds')
    url = name if is_url(name) or name.startswith("/") else f"{folder}/{name}"
    stamp = "" if is_url(url) else _local(url).stamp
    if "offset" not in fields:  # a manifest of whole recordings states their durations too
        return Item(url, stamp)
    return Item(url, stamp, offset=float(offset), duration=None if duration is None else float(duration))


def _of_tar(file: Item) -> Iterator[Item]:
    for _, member in _members(file):
        if member.isfile() and PurePosixPath(member.name).suffix.lower() in AUDIO_EXTENSIONS:
            yield Item(file.url, file.stamp, member.name, member.offset_data, member.size)


def _shar_files(files: Sequence[Item], field: str, ending: str) -> list[Item]:
    return [file for file in files if re.fullmatch(rf"{field}(\..+)?\.{ending}", PurePosixPath(path_of(file.url)).name)]


def _is_shar(files: Sequence[Item]) -> bool:
    return bool(_shar_files(files, "cuts", r"jsonl(\.gz)?") and _shar_files(files, "recording", "tar"))


def _of_shar(files: Sequence[Item]) -> Iterator[Item]:
    """The cuts of a Shar folder that have sound."""
    cuts, recordings = _shar_files(files, "cuts", r"jsonl(\.gz)?"), _shar_files(files, "recording", "tar")
    if len(cuts) != len(recordings):
        raise DataError(
            f"{cuts[0].url} is one of {len(cuts)} files of cuts, for {len(recordings)} of recordings: a Shar folder has"
            " one of each for a shard"
        )
    for file, recording in zip(cuts, recordings, strict=True):
        for cut, pair in zip_longest(_lines_of_cuts(file), _pairs(recording)):
            name = cut.get("id") if isinstance(cut, dict) else None
            if name is None or pair is None or os.path.splitext(pair[0].member)[0] != name:  # noqa: PTH122 - keeps "./"
                found = "nothing" if pair is None else pair[0].member
                raise DataError(f"{recording.url} has {found} where {file.url} has cut {name}: write the shard again")
            sound, seconds = pair
            start, duration = float(cut.get("start", 0.0)), float(cut.get("duration", seconds))
            is_part = start > 0 or duration < seconds - _SHORTER_SECONDS
            if not sound.member.endswith(".nodata"):
                yield replace(sound, offset=start, duration=duration) if is_part else sound


def _lines_of_cuts(file: Item) -> Iterator[Any]:
    with _open(file.url, is_whole=True) as opened:
        try:
            lines: Iterable[bytes] = gzip.GzipFile(fileobj=opened) if path_of(file.url).endswith(".gz") else opened
            yield from (json.loads(line) for line in lines if line.strip())
        except (ValueError, EOFError, OSError) as error:
            raise DataError(f"{file.url} is not a whole file of cuts ({one_line(error)}): write it again") from None


def _pairs(file: Item) -> Iterator[tuple[Item, float]]:
    """Each sound in a tar file of Shar, and its seconds, which follow it."""
    sound = None
    for archive, member in _members(file):
        if sound is None:
            sound = Item(file.url, file.stamp, member.name, member.offset_data, member.size)
            continue
        content = archive.extractfile(member) if member.name.endswith(".json") else None
        yield sound, float(json.load(content)["duration"]) if content else 0.0
        sound = None


def _members(file: Item) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    with _open(file.url) as opened:
        try:
            with tarfile.open(fileobj=opened, mode="r:") as archive:
                for member in archive:
                    yield archive, member
        except tarfile.TarError as error:
            raise DataError(f"{file.url} is not a complete tar file ({error}): unpack it, or make it again") from None
        except ValueError as error:  # a web server that gives out whole files only
            raise DataError(f"{file.url} cannot be read in parts ({one_line(error)}): download it") from None


def _of_parquet(file: Item) -> list[Item]:
    parquet = import_parquet(file.url)
    with _open(file.url) as opened:
        try:
            described = parquet.ParquetFile(opened)
        except Exception as error:
            raise DataError(f"{file.url} is not a Parquet file: {one_line(error)}") from None
        if "audio" not in described.schema_arrow.names:
            raise DataError(f"{file.url} has no column audio: name files of an audio dataset")
        return [Item(file.url, file.stamp, str(row)) for row in range(described.metadata.num_rows)]


def import_parquet(url: str) -> Any:
    """Arrow's module for Parquet.

    Raises:
        DataError: it is not installed.
    """
    try:
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{url} needs a package that is not installed: pip install 'asr-doge[datasets]'") from None
    return parquet
