"""Filling a feature cache (see `asr_doge.data.feature_cache`), by one process or by several, each its part.

Promises: a file is written whole or not at all, so a killed run loses at most the file under way; what a file holds
when it is written again stays in it, whoever put it there; features of another source or storage are only removed where
that is asked for, and no file of another part is. It runs no encoder and opens no recording.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import BinaryIO

from torch import Tensor

from asr_doge.data.feature_folder import (
    OTHER_SOURCE_REMEDY,
    Index,
    OpenShard,
    difference,
    numbers_of,
    read_header_of,
    read_headers,
    shard_of,
)
from asr_doge.data.feature_shards import (
    DamagedShardError,
    Features,
    OtherVersionError,
    ShardHeader,
    Source,
    Storage,
    read_header,
    shard_bytes,
    to_storage,
)
from asr_doge.data.sharding import WHOLE, Shard
from asr_doge.data.stores import LocalStore, Store, open_store
from asr_doge.errors import DataError


class FeatureCacheWriter:
    """Fill a feature cache, or a part of one, or go on with it.

    What the folder already holds of the same source and storage stays. Several manifests can share a folder if no id
    means two recordings. Use it as a context manager, or call `close`.

    Args:
        folder: the cache, a path or URL; made if need be.
        source: what computes the features.
        storage: how they are stored.
        num_shards: files to lay the cache out in (`shard_count`); more if the folder already has more.
        part: of the files, that this process fills.
        overwrite: remove features of another source or storage; they may have cost days.

    Raises:
        DataError: the folder cannot be written to, holds features of another source or storage, or its part is being
            written by another process.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        source: Source,
        storage: Storage | None = None,
        *,
        num_shards: int = 1,
        part: Shard = WHOLE,
        overwrite: bool = False,
    ) -> None:
        self.store = open_store(folder)
        self.source = dict(source)
        self.storage = storage or Storage()
        self._part = part
        self._lock = _lock(self.store, part)
        try:
            headers = self._usable_headers(overwrite)
            layouts = [numbers_of(name)[1] for name in headers]
            self.num_shards: int = max([num_shards, *layouts])
            self._index = Index({name: header for name, header in headers.items() if self._may_hold_mine(name)})
        except DataError:
            self.close()
            raise

    def shard_of(self, utterance_id: str) -> int | None:
        """The file, from 0, that an utterance belongs in; None if another part fills it."""
        number = shard_of(utterance_id, self.num_shards)
        return number if number % self._part.count == self._part.index - 1 else None

    def holds(self, utterance_id: str, stamp: str | None, copies: int = 1) -> bool:
        """Whether the features of the recording with this stamp are there, so that nothing need be computed.

        Args:
            utterance_id: any text.
            stamp: None, for a recording that is not on this machine, takes any.
            copies: how many are wanted, the recording itself included.
        """
        _, entry = self._index.entries.get(utterance_id, (None, None))
        return entry is not None and stamp in (None, entry.stamp) and len(entry.copies) == copies

    def stamp(self, utterance_id: str) -> str | None:
        """The stamp of the recording whose features are there."""
        _, entry = self._index.entries.get(utterance_id, (None, None))
        return None if entry is None else entry.stamp

    def unreadable(self, utterance_id: str) -> str | None:
        """Why the utterance had no features when it was last tried, if it had none."""
        return self._index.unreadable.get(utterance_id)

    @contextmanager
    def shard(self, number: int) -> Iterator["ShardWriter"]:
        """Fill one file; it is written at the end of the block if anything was added to it.

        After an error too: what was added is complete, and cost a pass of the encoder.

        Raises:
            DataError: it cannot be written.
        """
        if self._lock is not None and self._lock.closed:
            raise ValueError("the feature cache is closed")
        name = f"features-{number:05d}-of-{self.num_shards:05d}.safetensors"
        if isinstance(self.store, LocalStore):
            self.store.remove_leftovers(name)
        shard = ShardWriter(self.storage)
        try:
            yield shard
        finally:
            if shard.changed:
                self._write(name, shard)

    def _write(self, name: str, shard: "ShardWriter") -> None:
        """Put what the file holds already and what is new into one."""
        header = self._current_header(name)
        utterances = dict(shard.utterances)
        unreadable = dict(shard.unreadable)
        if header is not None:
            rows = OpenShard(self.store, name, header)
            for id_, entry in header.entries.items():
                if id_ not in utterances and id_ not in unreadable:
                    utterances[id_] = entry.stamp, [rows.read(place) for place in entry.copies]
            for id_, reason in header.unreadable.items():
                if id_ not in utterances:
                    unreadable.setdefault(id_, reason)
        content = shard_bytes(self.source, self.storage, utterances, unreadable)
        self.store.write(name, content)
        self._index.add(name, read_header(lambda start, stop: content[start:stop], len(content)))

    def _current_header(self, name: str) -> ShardHeader | None:
        """The header of the file as it is now: a writer of another part, or of all, may have replaced it meanwhile."""
        try:
            header = read_header_of(self.store, name)
        except (FileNotFoundError, DamagedShardError):
            return None
        if (header.source, header.storage) != (self.source, self.storage):
            found = difference(header, self.source, self.storage)
            raise DataError(f"{self.store} is being filled by another process too, of another {found}: stop one")
        return header

    def close(self) -> None:
        """Let others write to this part."""
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> "FeatureCacheWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _may_hold_mine(self, name: str) -> bool:
        """Whether utterances of this part can be in the file; their remainders tell, as counts are powers of two."""
        number, count = numbers_of(name)
        step = self._part.count
        return any(other % step == self._part.index - 1 for other in range(number, self.num_shards, count))

    def _is_mine(self, name: str) -> bool:
        """Whether this part fills the file; another part's is for that part to judge, which may just be writing it."""
        return numbers_of(name)[0] % self._part.count == self._part.index - 1

    def _usable_headers(self, overwrite: bool) -> dict[str, ShardHeader]:
        """Headers of the files that can be used; unusable files of this part are removed."""
        headers, damaged = read_headers(self.store)
        others = {
            name: header
            for name, header in headers.items()
            if header.source != self.source or header.storage != self.storage
        }
        finding = ""
        if count := sum(len(header.entries) for header in others.values()):
            found = difference(next(iter(others.values())), self.source, self.storage)
            finding = f"the features of {count:,} utterances by another {found}"
        elif of_other_version := [error for error in damaged.values() if isinstance(error, OtherVersionError)]:
            finding = f"a file that {of_other_version[0]}"
        if finding and not overwrite:
            raise DataError(f"{self.store} holds {finding}: run 'asr-doge features' {OTHER_SOURCE_REMEDY}")
        for name in (*others, *damaged):
            if self._is_mine(name):
                self.store.remove(name)
        return {name: header for name, header in headers.items() if name not in others}


class ShardWriter:
    """The utterances to add to one file of the cache."""

    def __init__(self, storage: Storage) -> None:
        self.utterances: dict[str, tuple[str, list[dict[str, Tensor]]]] = {}
        self.unreadable: dict[str, str] = {}
        self._storage = storage

    @property
    def changed(self) -> bool:
        """Whether there is anything to write."""
        return bool(self.utterances or self.unreadable)

    def add(self, utterance_id: str, stamp: str, copies: Sequence[Features]) -> None:
        """Store the features of one utterance, in place of any older ones.

        Args:
            utterance_id: any text.
            stamp: `fingerprint` of the recording, taken before it was encoded.
            copies: of the recording itself, then of its augmented copies.
        """
        for features in copies:
            if features.embeddings.ndim != 2:
                raise ValueError(f"expected embeddings [T', D], got {list(features.embeddings.shape)}")
        self.utterances[utterance_id] = stamp, [to_storage(features, self._storage.dtype) for features in copies]
        self.unreadable.pop(utterance_id, None)

    def mark_unreadable(self, utterance_id: str, reason: str) -> None:
        """Record that an utterance has no features and why, so that training leaves it out; `add` takes it back."""
        self.unreadable[utterance_id] = reason
        self.utterances.pop(utterance_id, None)


def _lock(store: Store, part: Shard) -> BinaryIO | None:
    """Keep a second writer of the same part out, who would do its work twice. It ends with the process."""
    if not isinstance(store, LocalStore):
        return None
    try:
        store.folder.mkdir(parents=True, exist_ok=True)
        file = (store.folder / f"writer-{part.index}-of-{part.count}.lock").open("wb")
    except OSError as error:
        raise DataError(f"{store} cannot be written to ({error.strerror}): choose another folder") from None
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise DataError(f"feature cache {store} is being written by another process: wait for it") from None
        except OSError:  # some network folders have no locks
            pass
    return file
