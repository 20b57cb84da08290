"""The feature cache: speech embeddings on disk, computed once and read many times.

Format: a folder with `index.json` and shards `features-00000.safetensors`, … of about 64 MB. The index states what
computed the features (`source`) and, for each shard, its size and its utterances: id, key of the tensor in the shard,
stamp of the recording, number of embeddings.

Promises: a shard is in the index only once it is whole on disk, so an interrupted run loses at most the shard under
way; features of another source, or replaced by newer ones, are never returned, and those of another source only removed
where that is asked for; damage is one `DataError` line that says
to run `asr-doge features` again. It runs no encoder and opens no recording.
"""

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from asr_doge.data.atomic_writing import TEMPORARY_SUFFIX, write_atomically
from asr_doge.data.manifest import Utterance
from asr_doge.errors import DataError

SHARD_BYTES = 64 * 1024 * 1024

Source = Mapping[str, str | int | None]
"""What the features depend on besides the audio, by name; this module only compares it. For what the package puts
there see `asr_doge.models.encoders.loading.feature_source`."""

_INDEX_NAME = "index.json"
_LOCK_NAME = "writer.lock"
_FORMAT = "asr-doge feature cache, version 1"
_SHARD_NAME = re.compile(r"features-(\d{5,})\.safetensors")
_REMEDY = "run 'asr-doge features' again"
_OTHER_SOURCE_REMEDY = "with another --output_dir, or with --overwrite to replace them"


def audio_stamp(path: str | os.PathLike[str]) -> str:
    """Size and time of change of a recording; another stamp means that its features must be computed again.

    Raises:
        DataError: there is no such file.
    """
    try:
        status = Path(path).stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): correct the manifest or restore the file") from None
    return f"{status.st_size}-{status.st_mtime_ns}"


class FeatureCacheWriter:
    """Fill a feature cache, or go on with one.

    What the folder already holds of the same source stays. Several manifests can share a folder if no id means two
    recordings. Use it as a context manager, or call `close`.

    Args:
        folder: the cache; made if need be.
        source: what computes the features.
        shard_bytes: size at which a shard is written, in bytes.
        overwrite: remove features of another source; they may have cost days.

    Raises:
        DataError: the folder cannot be written to, holds features of another source, or is being written to by another
            process.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        source: Source,
        shard_bytes: int = SHARD_BYTES,
        *,
        overwrite: bool = False,
    ) -> None:
        self._folder = Path(folder)
        self._source = dict(source)
        self._shard_bytes = shard_bytes
        self._pending: dict[str, tuple[str, Tensor]] = {}
        self._pending_bytes = 0
        self._lock = _lock(self._folder)
        try:
            self._index = self._reusable(overwrite)
            self._write_index()
        except DataError:
            self._lock.close()
            raise

    def holds(self, utterance_id: str, stamp: str | None) -> bool:
        """Whether the features of the recording with this `audio_stamp` are there, so that nothing need be computed.

        None, for a recording that is not on this machine, takes any.
        """
        if utterance_id in self._pending:
            return stamp in (None, self._pending[utterance_id][0])
        entry = self._index.entries.get(utterance_id)
        return entry is not None and stamp in (None, entry.stamp)

    def add(self, utterance_id: str, stamp: str, embeddings: Tensor) -> None:
        """Store the features of one utterance, in place of any older ones.

        Args:
            utterance_id: any text.
            stamp: `audio_stamp` of the recording, taken before it was encoded.
            embeddings: `[T', D]`, on any device; its type is kept.

        Raises:
            DataError: a shard is full and cannot be written.
        """
        if self._lock.closed:
            raise ValueError("the feature cache is closed")
        if embeddings.ndim != 2:
            raise ValueError(f"expected embeddings [T', D], got {list(embeddings.shape)}")
        # A copy, always: a slice of a batch would keep the whole batch in memory, and be refused for sharing it.
        tensor = embeddings.detach().cpu().clone().contiguous()
        if utterance_id in self._pending:
            self._pending_bytes -= self._pending[utterance_id][1].nbytes
        self._pending[utterance_id] = (stamp, tensor)
        self._pending_bytes += tensor.nbytes
        if self._pending_bytes >= self._shard_bytes:
            self._write_shard()

    def mark_unreadable(self, utterance_id: str, reason: str) -> None:
        """Record that an utterance has no features and why, so that training leaves it out; `add` takes it back."""
        self._index.unreadable[utterance_id] = reason

    def mark_readable(self, utterance_id: str) -> None:
        """Take back `mark_unreadable` for an utterance whose features are held after all."""
        self._index.unreadable.pop(utterance_id, None)

    def close(self) -> None:
        """Write what is pending, and let others write to the folder."""
        try:
            if self._pending:
                self._write_shard()
            else:
                self._write_index()
        finally:
            self._lock.close()

    def __enter__(self) -> "FeatureCacheWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()  # after an error too: every pending utterance is complete, and cost a pass of the encoder

    def _reusable(self, overwrite: bool) -> "_Index":
        """What is already there, whole and of the same source."""
        try:
            index = _read_index(self._folder)
        except DataError:  # no index, or one that nobody can use
            return _Index(self._source, {}, {}, {})
        if index.source != self._source:
            if index.entries and not overwrite:
                raise DataError(
                    f"{self._folder} holds the features of {len(index.entries):,} utterances by another encoder: run"
                    f" 'asr-doge features' {_OTHER_SOURCE_REMEDY}"
                )
            return _Index(self._source, {}, {}, {})
        damaged = set(index.damaged_shards(self._folder))
        return index.without(damaged)

    def _write_shard(self) -> None:
        numbers = [int(match[1]) for name in self._index.shard_bytes if (match := _SHARD_NAME.fullmatch(name))]
        name = f"features-{max(numbers, default=-1) + 1:05d}.safetensors"
        # Keyed by position: safetensors reserves a key and refuses some characters, and an id may be anything.
        content = safetensors.torch.save(
            {str(key): tensor for key, (_, tensor) in enumerate(self._pending.values())}, {"format": "pt"}
        )
        write_atomically(self._folder / name, content)
        self._index.shard_bytes[name] = len(content)
        for key, (utterance_id, (stamp, tensor)) in enumerate(self._pending.items()):
            self._index.entries[utterance_id] = _Entry(name, str(key), stamp, len(tensor))
            self._index.unreadable.pop(utterance_id, None)
        self._pending, self._pending_bytes = {}, 0
        self._write_index()

    def _write_index(self) -> None:
        """Record what is there, then remove what is not recorded: never the other way round, lest the index lie."""
        used = {entry.shard for entry in self._index.entries.values()}
        self._index = self._index.without(self._index.shard_bytes.keys() - used)
        write_atomically(self._folder / _INDEX_NAME, self._index.to_json())
        for path in self._folder.iterdir():
            is_shard = _SHARD_NAME.fullmatch(path.name) is not None
            is_leftover = path.suffix == TEMPORARY_SUFFIX and path.name.startswith(("features-", _INDEX_NAME))
            if is_leftover or (is_shard and path.name not in used):
                path.unlink()


class FeatureCache:
    """Features by utterance id, read from disk when asked for.

    It may be handed to the worker processes of a data loader, forked or spawned; each opens the shards for itself.
    """

    def __init__(self, folder: Path, index: "_Index") -> None:
        self._folder = folder
        self._index = index
        self._shards: dict[str, Any] = {}
        self._process = os.getpid()

    @classmethod
    def open(cls, folder: str | os.PathLike[str], expected_source: Source | None = None) -> "FeatureCache":
        """Open a cache; no features are read yet.

        Args:
            folder: where `FeatureCacheWriter` wrote.
            expected_source: what the features must have been computed by; None takes any.

        Raises:
            DataError: no cache there, a missing or damaged shard, or another source than expected.
        """
        folder = Path(folder)
        index = _read_index(folder)
        for name in index.damaged_shards(folder):
            raise DataError(f"feature cache {folder}: {name} is missing or not whole; {_REMEDY}")
        expected = dict(expected_source or {})
        for field in [*expected, *index.source] if expected_source is not None else []:
            found, wanted = index.source.get(field), expected.get(field)
            if found != wanted:
                raise DataError(
                    f"feature cache {folder} is of another encoder ({field} {found!r}, not {wanted!r}): run 'asr-doge"
                    f" features' for this one, {_OTHER_SOURCE_REMEDY}"
                )
        return cls(folder, index)

    @property
    def source(self) -> dict[str, str | int | None]:
        """What computed the features."""
        return dict(self._index.source)

    def stamp(self, utterance_id: str) -> str:
        """The `audio_stamp` of the recording when its features were computed."""
        return self._entry(utterance_id).stamp

    @property
    def unreadable(self) -> Mapping[str, str]:
        """Utterances that were tried and have no features, each with the reason."""
        return self._index.unreadable

    def num_embeddings(self, utterance_id: str) -> int:
        """T', without reading the features."""
        return self._entry(utterance_id).length

    def require_fresh(self, utterances: Iterable[Utterance]) -> None:
        """Check that the features of all utterances are there and that no recording changed since.

        A recording that is not on this machine passes: features are often moved to where no audio is.

        Raises:
            DataError: features are missing or stale.
        """
        utterances = list(utterances)
        missing = [u.id for u in utterances if u.id not in self]
        stale = [
            u.id
            for u in utterances
            if u.id in self and u.audio_path.exists() and audio_stamp(u.audio_path) != self.stamp(u.id)
        ]
        for ids, finding in ((missing, "lacks"), (stale, "is older than the recordings of")):
            if ids:
                raise DataError(
                    f"feature cache {self._folder} {finding} {len(ids):,} of {len(utterances):,} utterances"
                    f" (the first: {ids[0]!r}): {_REMEDY}"
                )

    def __contains__(self, utterance_id: object) -> bool:
        return utterance_id in self._index.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._index.entries)

    def __len__(self) -> int:
        return len(self._index.entries)

    def __getitem__(self, utterance_id: str) -> Tensor:
        """Speech embeddings `[T', D]` of the type they were stored in; the caller may change them.

        Raises:
            DataError: the cache lacks the utterance, or its shard is damaged.
        """
        entry = self._entry(utterance_id)
        try:
            # A copy, as every tensor of a shard otherwise shares one memory map, and writing to it would be read back.
            embeddings: Tensor = self._shard(entry.shard).get_tensor(entry.key).clone()
        except (OSError, SafetensorError):
            raise DataError(f"feature cache {self._folder}: {entry.shard} is damaged; {_REMEDY}") from None
        return embeddings

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}}

    def _entry(self, utterance_id: str) -> "_Entry":
        try:
            return self._index.entries[utterance_id]
        except KeyError:
            raise DataError(f"feature cache {self._folder} lacks utterance {utterance_id!r}: {_REMEDY}") from None

    def _shard(self, name: str) -> Any:
        if self._process != os.getpid():  # forked: the parent's handles are not ours to use
            self._shards, self._process = {}, os.getpid()
        if name not in self._shards:
            self._shards[name] = safe_open(self._folder / name, framework="pt")
        return self._shards[name]


@dataclass(frozen=True)
class _Entry:
    shard: str
    key: str
    stamp: str
    length: int
    """Number of embeddings, T'."""


@dataclass(frozen=True)
class _Index:
    source: dict[str, str | int | None]
    shard_bytes: dict[str, int]
    """Size of each shard's file."""
    entries: dict[str, _Entry]
    """Where each utterance is."""
    unreadable: dict[str, str]
    """Why an utterance has no features."""

    def damaged_shards(self, folder: Path) -> list[str]:
        """Shards that are missing or of another size than when they were written."""
        sizes = {
            name: (folder / name).stat().st_size if (folder / name).is_file() else None for name in self.shard_bytes
        }
        return [name for name, size in self.shard_bytes.items() if sizes[name] != size]

    def without(self, shards: Iterable[str]) -> "_Index":
        shards = set(shards)
        return _Index(
            self.source,
            {name: size for name, size in self.shard_bytes.items() if name not in shards},
            {id_: entry for id_, entry in self.entries.items() if entry.shard not in shards},
            self.unreadable,
        )

    def to_json(self) -> bytes:
        shards: dict[str, Any] = {name: {"bytes": size, "utterances": {}} for name, size in self.shard_bytes.items()}
        for id_, entry in self.entries.items():
            fields = {"key": entry.key, "stamp": entry.stamp, "num_embeddings": entry.length}
            shards[entry.shard]["utterances"][id_] = fields
        content = {"format": _FORMAT, "source": self.source, "shards": shards, "unreadable": self.unreadable}
        # As in manifests: a lone surrogate in an id has a JSON escape, but no UTF-8 form.
        return json.dumps(content, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _read_index(folder: Path) -> _Index:
    path = folder / _INDEX_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise DataError(f"{path} is of another version than {_FORMAT!r}: {_REMEDY}")
        shards = content["shards"]
        entries = {
            id_: _Entry(name, fields["key"], fields["stamp"], fields["num_embeddings"])
            for name, shard in shards.items()
            for id_, fields in shard["utterances"].items()
        }
        shard_bytes = {name: shard["bytes"] for name, shard in shards.items()}
        return _Index(content["source"], shard_bytes, entries, content["unreadable"])
    except OSError:
        raise DataError(f"{folder} is no feature cache (no readable {_INDEX_NAME}): run 'asr-doge features'") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path} is damaged: {_REMEDY}") from None


def _lock(folder: Path) -> BinaryIO:
    """Keep a second writer out: two would number their shards alike. The system ends the lock with the process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / _LOCK_NAME).open("wb")
    except OSError as error:
        raise DataError(f"{folder} cannot be written to ({error.strerror}): choose another folder") from None
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise DataError(f"feature cache {folder} is being written by another process: wait for it") from None
        except OSError:  # some network folders have no locks
            pass
    return file
