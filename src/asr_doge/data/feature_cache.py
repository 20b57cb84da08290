"""The feature cache: the output of the frozen encoder on disk, computed once and read many times.

Layout: a folder of files `features-00002-of-00008.safetensors` (see `asr_doge.data.feature_shards`), and nothing else
that matters. In which of the files an utterance is follows from its id alone, so that several machines can fill a
folder without talking to each other, and the cache is whatever files the folder lists. Their number is a power of two;
a corpus that outgrows it gets files of a larger number beside the older ones, and where both hold an utterance the
larger number counts.

Promises: features of another source or storage are never returned; a reader is given what a file holds now, though it
was replaced meanwhile (elsewhere than on this machine that is not noticed); damage is one `DataError` line that says to
run `asr-doge features` again. It writes nothing (see `asr_doge.data.feature_cache_writer`), and opens no recording.
"""

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from asr_doge.data.feature_folder import (
    OTHER_SOURCE_REMEDY,
    READINGS,
    REMEDY,
    SHARD_NAME,
    Index,
    OpenShard,
    ReplacedError,
    difference,
    read_header_of,
    read_headers,
)
from asr_doge.data.feature_shards import (
    DamagedShardError,
    Entry,
    Features,
    ShardHeader,
    Source,
    Storage,
    from_storage,
)
from asr_doge.data.fingerprints import KnownCopies
from asr_doge.data.manifest import Utterance
from asr_doge.data.stores import Store, open_store
from asr_doge.errors import DataError

_OPEN_SHARDS = 1024  # a process may map only so many files


class FeatureCache:
    """Features by utterance id, read when asked for.

    On this machine the files are mapped into memory and what is returned are views of them, so that reading copies
    nothing; from elsewhere only the bytes of the utterance travel. It may be handed to the worker processes of a data
    loader, forked or spawned.
    """

    def __init__(self, store: Store, headers: dict[str, ShardHeader]) -> None:
        self._store = store
        self._headers = headers
        self._index = Index(headers)
        self._rows: OrderedDict[str, OpenShard] = OrderedDict()

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
        headers, damaged = read_headers(store)
        for name, error in damaged.items():
            raise DataError(f"feature cache {store}: {name} {error}; {REMEDY}")
        if not headers:
            raise DataError(f"{store} is no feature cache (no features-*.safetensors): run 'asr-doge features'")
        first = next(iter(headers.values()))
        for header in headers.values():
            if expected_source is not None and header.source != expected_source:
                finding = difference(header, expected_source, header.storage)
                raise DataError(
                    f"feature cache {store} is of another {finding}: run 'asr-doge features' for this one,"
                    f" {OTHER_SOURCE_REMEDY}"
                )
            if (header.source, header.storage) != (first.source, first.storage):
                raise DataError(
                    f"feature cache {store} mixes features of two encoders or ways of storage: run 'asr-doge features'"
                    f" {OTHER_SOURCE_REMEDY}"
                )
        return cls(store, headers)

    @classmethod
    def exists(cls, folder: str | os.PathLike[str]) -> bool:
        """Whether there is a cache at all, usable or not."""
        return any(SHARD_NAME.fullmatch(name) for name in open_store(folder).sizes())

    @property
    def source(self) -> dict[str, str | int | None]:
        """The encoder and front end that computed the features."""
        return dict(next(iter(self._headers.values())).source)

    @property
    def storage(self) -> Storage:
        """How the features are stored."""
        return next(iter(self._headers.values())).storage

    @property
    def unreadable(self) -> Mapping[str, str]:
        """Utterances that were tried and have no features, each with the reason."""
        return self._index.unreadable

    def stamp(self, utterance_id: str) -> str:
        """The `fingerprint` of the recording when its features were computed."""
        return self._find(utterance_id)[1].stamp

    def num_copies(self, utterance_id: str) -> int:
        """Number of copies of an utterance: itself and its augmented copies."""
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
                    f" (the first: {ids[0]!r}): {REMEDY}"
                )

    def features(self, utterance_id: str, copy: int = 0) -> Features:
        """All that is stored of an utterance, or of one of its augmented copies (from 1).

        Not to be written to. `Features.embeddings` is of the type it was stored in; int8 comes back as float32.

        Raises:
            DataError: the cache lacks the utterance, or its file is damaged.
        """
        return self._read(utterance_id, copy, with_ctc=True)

    def embeddings(self, utterance_id: str, copy: int = 0) -> Tensor:
        """Speech embeddings `[T', D]` alone, which are all that training reads; see `features`."""
        return self._read(utterance_id, copy, with_ctc=False).embeddings

    def _read(self, utterance_id: str, copy: int, with_ctc: bool) -> Features:
        for _ in range(READINGS):
            name, entry = self._find(utterance_id)
            try:
                try:
                    return from_storage(self._rows_of(name).read(entry.copies[copy], with_ctc))
                except ReplacedError:
                    self._read_again(name)
            except (OSError, SafetensorError, DamagedShardError):
                break
        raise DataError(f"feature cache {self._store}: {name} is damaged; {REMEDY}")

    def __getitem__(self, utterance_id: str) -> Tensor:
        """Speech embeddings `[T', D]` of an utterance; see `features`."""
        return self.embeddings(utterance_id)

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
            raise DataError(f"feature cache {self._store} lacks utterance {utterance_id!r}: {REMEDY}") from None

    def _read_again(self, name: str) -> None:
        """Note what a file holds that has taken another's place."""
        header = read_header_of(self._store, name)
        if (header.source, header.storage) != (self.source, self.storage):
            raise DataError(
                f"feature cache {self._store}: {name} was replaced by features of another encoder; {REMEDY}"
            )
        self._headers = {**self._headers, name: header}
        self._index = Index(self._headers)

    def _rows_of(self, name: str) -> OpenShard:
        """The open file; those used least lately are closed."""
        if name not in self._rows:
            self._rows[name] = OpenShard(self._store, name, self._headers[name])
            if len(self._rows) > _OPEN_SHARDS:
                self._rows.popitem(last=False)
        self._rows.move_to_end(name)
        return self._rows[name]
