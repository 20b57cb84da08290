"""The feature cache: what the frozen encoder hears, on disk, computed once and read many times.

Layout: a folder of files `features-00002-of-00008.safetensors` (see `asr_doge.data.feature_shards`), and nothing else
that matters. In which of the files an utterance is follows from its id alone, so that several machines can fill a
folder without talking to each other, and the cache is whatever files the folder lists. Their number is a power of two;
a corpus that outgrows it gets files of a larger number beside the older ones, and where both hold an utterance the
larger number counts.

Promises: a file is there whole or not at all, so a killed run loses at most the file under way; features of another
source or storage are never returned, and only removed where that is asked for; a writer removes no file of another
part, and a reader is given what the file holds now, though it was replaced meanwhile (elsewhere than on this machine
that is not noticed); damage is one `DataError` line that says to run `asr-doge features` again. It runs no encoder and
opens no recording.
"""

import os
import re
import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open
from torch import Tensor

from asr_doge.data.feature_shards import (
    DamagedShardError,
    Entry,
    Features,
    OtherVersionError,
    Rows,
    ShardHeader,
    Source,
    Storage,
    from_storage,
    header_digest,
    read_header,
    read_rows,
    row_range,
    shard_bytes,
    to_storage,
)
from asr_doge.data.fingerprints import KnownCopies
from asr_doge.data.manifest import Utterance, id_digest
from asr_doge.data.sharding import WHOLE, Shard
from asr_doge.data.stores import LocalStore, Store, open_store
from asr_doge.errors import DataError

_SHARD_NAME = re.compile(r"features-(\d{5,})-of-(\d{5,})\.safetensors")
_OPEN_SHARDS = 1024  # a process may map only so many files
_READINGS = 3
"""Times that a file is read before it counts as damaged: another process may be replacing it."""
_REMEDY = "run 'asr-doge features' again"
_OTHER_SOURCE_REMEDY = "with another --output_dir, or with --overwrite to replace them"


def shard_count(seconds: float, shard_seconds: float) -> int:
    """Files for so much audio: the power of two that leaves at most `shard_seconds` for each, on average."""
    count = 1
    while count * shard_seconds < seconds:
        count *= 2
    return count


def shard_of(utterance_id: str, num_shards: int) -> int:
    """The file, from 0, that an utterance belongs in: the same on every machine."""
    return int.from_bytes(id_digest(utterance_id)[:8], "big") % num_shards


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
            layouts = [_numbers(name)[1] for name in headers]
            self.num_shards: int = max([num_shards, *layouts])
            self._headers = {name: header for name, header in headers.items() if self._may_hold_mine(name)}
            self._index = _Index(self._headers)
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
        header = self._headers.get(name)
        utterances = dict(shard.utterances)
        unreadable = dict(shard.unreadable)
        if header is not None:
            rows = _Rows(self.store, name, header)
            for id_, entry in header.entries.items():
                if id_ not in utterances and id_ not in unreadable:
                    utterances[id_] = entry.stamp, [rows.read(place) for place in entry.copies]
            for id_, reason in header.unreadable.items():
                if id_ not in utterances:
                    unreadable.setdefault(id_, reason)
        content = shard_bytes(self.source, self.storage, utterances, unreadable)
        self.store.write(name, content)
        self._headers[name] = read_header(lambda start, stop: content[start:stop], len(content))
        self._index.take(name, self._headers[name])

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
        number, count = _numbers(name)
        step = self._part.count
        return any(other % step == self._part.index - 1 for other in range(number, self.num_shards, count))

    def _is_mine(self, name: str) -> bool:
        """Whether this part fills the file; another part's is for that part to judge, which may just be writing it."""
        return _numbers(name)[0] % self._part.count == self._part.index - 1

    def _usable_headers(self, overwrite: bool) -> dict[str, ShardHeader]:
        """What is there already; of this part's files, those that nobody can use any more are removed."""
        headers, damaged = _read_headers(self.store)
        others = {
            name: header
            for name, header in headers.items()
            if header.source != self.source or header.storage != self.storage
        }
        finding = ""
        if count := sum(len(header.entries) for header in others.values()):
            difference = _difference(next(iter(others.values())), self.source, self.storage)
            finding = f"the features of {count:,} utterances by another {difference}"
        elif of_other_version := [error for error in damaged.values() if isinstance(error, OtherVersionError)]:
            finding = f"a file that {of_other_version[0]}"
        if finding and not overwrite:
            raise DataError(f"{self.store} holds {finding}: run 'asr-doge features' {_OTHER_SOURCE_REMEDY}")
        for name in (*others, *damaged):
            if self._is_mine(name):
                self.store.remove(name)
        return {name: header for name, header in headers.items() if name not in others}


class ShardWriter:
    """What is to be added to one file of the cache."""

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


class FeatureCache:
    """Features by utterance id, read when asked for.

    On this machine the files are mapped into memory and what is returned are views of them, so that reading copies
    nothing; from elsewhere only the bytes of the utterance travel. It may be handed to the worker processes of a data
    loader, forked or spawned.
    """

    def __init__(self, store: Store, headers: dict[str, ShardHeader]) -> None:
        self._store = store
        self._headers = headers
        self._index = _Index(headers)
        self._rows: OrderedDict[str, _Rows] = OrderedDict()

    @classmethod
    def open(cls, folder: str | os.PathLike[str], expected_source: Source | None = None) -> "FeatureCache":
        """Open a cache; no features are read yet.

        Args:
            folder: a path or URL where `FeatureCacheWriter` wrote.
            expected_source: what the features must have been computed by; None takes any.

        Raises:
            DataError: no cache there, a damaged file, or another source than expected.
        """
        store = open_store(folder)
        headers, damaged = _read_headers(store)
        for name, error in damaged.items():
            raise DataError(f"feature cache {store}: {name} {error}; {_REMEDY}")
        if not headers:
            raise DataError(f"{store} is no feature cache (no features-*.safetensors): run 'asr-doge features'")
        first = next(iter(headers.values()))
        for header in headers.values():
            if expected_source is not None and header.source != expected_source:
                finding = _difference(header, expected_source, header.storage)
                raise DataError(
                    f"feature cache {store} is of another {finding}: run 'asr-doge features' for this one,"
                    f" {_OTHER_SOURCE_REMEDY}"
                )
            if (header.source, header.storage) != (first.source, first.storage):
                raise DataError(
                    f"feature cache {store} mixes features of two encoders or ways of storage: run 'asr-doge features'"
                    f" {_OTHER_SOURCE_REMEDY}"
                )
        return cls(store, headers)

    @classmethod
    def exists(cls, folder: str | os.PathLike[str]) -> bool:
        """Whether there is a cache at all, usable or not."""
        return any(_SHARD_NAME.fullmatch(name) for name in open_store(folder).sizes())

    @property
    def source(self) -> dict[str, str | int | None]:
        """What computed the features."""
        return dict(next(iter(self._headers.values())).source)

    @property
    def storage(self) -> Storage:
        """How they are stored."""
        return next(iter(self._headers.values())).storage

    @property
    def unreadable(self) -> Mapping[str, str]:
        """Utterances that were tried and have no features, each with the reason."""
        return self._index.unreadable

    def stamp(self, utterance_id: str) -> str:
        """The `fingerprint` of the recording when its features were computed."""
        return self._find(utterance_id)[1].stamp

    def num_copies(self, utterance_id: str) -> int:
        """How often the utterance is there: itself and its augmented copies."""
        return len(self._find(utterance_id)[1].copies)

    def num_embeddings(self, utterance_id: str, copy: int = 0) -> int:
        """T', without reading the features."""
        place = self._find(utterance_id)[1].copies[copy]
        return place.stop - place.start

    def require_fresh(self, utterances: Iterable[Utterance]) -> None:
        """Check that the features of all utterances are there and that no recording changed since.

        A recording that is not on this machine passes: features are often moved to where no audio is.

        Raises:
            DataError: features are missing or stale.
        """
        utterances = list(utterances)
        missing = [u.id for u in utterances if u.id not in self]
        here = [u for u in utterances if u.id in self and os.path.exists(u.audio_path)]  # noqa: PTH110 - False where Path.exists raises
        unchanged = KnownCopies(self._store).unchanged([(u.audio_path, self.stamp(u.id)) for u in here])
        stale = [u.id for u, is_same in zip(here, unchanged, strict=True) if not is_same]
        for ids, finding in ((missing, "lacks"), (stale, "is older than the recordings of")):
            if ids:
                raise DataError(
                    f"feature cache {self._store} {finding} {len(ids):,} of {len(utterances):,} utterances"
                    f" (the first: {ids[0]!r}): {_REMEDY}"
                )

    def features(self, utterance_id: str, copy: int = 0) -> Features:
        """All that is stored of an utterance, or of one of its augmented copies (from 1).

        Not to be written to. `Features.embeddings` is of the type it was stored in; int8 comes back as float32.

        Raises:
            DataError: the cache lacks the utterance, or its file is damaged.
        """
        for _ in range(_READINGS):
            name, entry = self._find(utterance_id)
            try:
                return from_storage(self._rows_of(name).read(entry.copies[copy]))
            except _ReplacedError:
                self._read_again(name)
            except (OSError, SafetensorError, DamagedShardError):
                break
        raise DataError(f"feature cache {self._store}: {name} is damaged; {_REMEDY}")

    def __getitem__(self, utterance_id: str) -> Tensor:
        """Speech embeddings `[T', D]` of an utterance; see `features`."""
        return self.features(utterance_id).embeddings

    def __contains__(self, utterance_id: object) -> bool:
        return utterance_id in self._index.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._index.entries)

    def __len__(self) -> int:
        return len(self._index.entries)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": OrderedDict()}

    def _find(self, utterance_id: str) -> tuple[str, Entry]:
        try:
            return self._index.entries[utterance_id]
        except KeyError:
            raise DataError(f"feature cache {self._store} lacks utterance {utterance_id!r}: {_REMEDY}") from None

    def _read_again(self, name: str) -> None:
        """Note what a file holds that has taken another's place."""
        header = _read_header(self._store, name)
        if (header.source, header.storage) != (self.source, self.storage):
            raise DataError(
                f"feature cache {self._store}: {name} was replaced by features of another encoder; {_REMEDY}"
            )
        self._headers = {**self._headers, name: header}
        self._index = _Index(self._headers)

    def _rows_of(self, name: str) -> "_Rows":
        """The open file; those used least lately are closed."""
        if name not in self._rows:
            self._rows[name] = _Rows(self._store, name, self._headers[name])
            if len(self._rows) > _OPEN_SHARDS:
                self._rows.popitem(last=False)
        self._rows.move_to_end(name)
        return self._rows[name]


class _Index:
    """Where each utterance is, over all files; the larger number of files counts where several hold it."""

    def __init__(self, headers: Mapping[str, ShardHeader]) -> None:
        self.entries: dict[str, tuple[str, Entry]] = {}
        self.unreadable: dict[str, str] = {}
        for name in sorted(headers, key=lambda name: _numbers(name)[::-1]):
            self.take(name, headers[name])

    def take(self, name: str, header: ShardHeader) -> None:
        """Note what a file holds, over what was noted before."""
        for id_, entry in header.entries.items():
            self.entries[id_] = name, entry
            self.unreadable.pop(id_, None)
        for id_, reason in header.unreadable.items():
            self.unreadable[id_] = reason
            self.entries.pop(id_, None)


class _ReplacedError(Exception):
    """A file is not the one any more that its header was read from."""


class _Rows:
    """The stored rows of one file: mapped into memory where it is on this machine, else fetched."""

    def __init__(self, store: Store, name: str, header: ShardHeader) -> None:
        self._read = partial(store.read, name)
        self._header = header
        self._mapped: dict[str, Tensor] | None = None
        path = store.local_path(name)
        if path is not None:
            file = safe_open(path, framework="pt")
            if header_digest(file.metadata()) != header.digest:
                raise _ReplacedError
            self._mapped = {tensor: file.get_tensor(tensor) for tensor in header.tensors}

    def read(self, place: Rows) -> dict[str, Tensor]:
        """Rows of one copy, by the name of their tensor."""
        if self._mapped is None:
            return read_rows(self._read, self._header, place)
        return {name: tensor[slice(*row_range(name, place))] for name, tensor in self._mapped.items()}


def _numbers(name: str) -> tuple[int, int]:
    """A file's number and of how many it is one."""
    match = _SHARD_NAME.fullmatch(name)
    assert match is not None  # only such names are listed
    return int(match[1]), int(match[2])


def _read_headers(store: Store) -> tuple[dict[str, ShardHeader], dict[str, DamagedShardError]]:
    """Headers of the whole files, and what is wrong with the others."""
    headers: dict[str, ShardHeader] = {}
    damaged: dict[str, DamagedShardError] = {}
    for name, size in sorted(store.sizes().items()):
        if _SHARD_NAME.fullmatch(name):
            try:
                headers[name] = _read_header(store, name, size)
            except DamagedShardError as error:
                damaged[name] = error
            except FileNotFoundError:  # removed meanwhile
                continue
    return headers, damaged


def _read_header(store: Store, name: str, size: int | None = None) -> ShardHeader:
    """A file's header; its size may be given as it was when the folder was listed.

    Raises:
        DamagedShardError: it is damaged, and not only because it was being replaced.
        FileNotFoundError: it has gone.
    """
    for reading in range(_READINGS):
        if size is None:
            size = store.sizes().get(name)
        if size is None:
            raise FileNotFoundError(name)
        try:
            return read_header(partial(store.read, name), size)
        except (DamagedShardError, DataError):
            if reading == _READINGS - 1:
                raise
            size = None
    raise AssertionError("unreachable")


def _difference(header: ShardHeader, source: Source, storage: Storage) -> str:
    """What tells a file from what is wanted, such as `encoder (front_end_version 1, not 2)`."""
    for field in sorted({*header.source, *source}):
        found, wanted = header.source.get(field), source.get(field)
        if found != wanted:
            return f"encoder ({field} {found!r}, not {wanted!r})"
    for field, wanted in vars(storage).items():
        found = getattr(header.storage, field)
        if found != wanted:
            return f"storage (--{field} {found}, not {wanted})"
    raise ValueError("there is no difference")


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
