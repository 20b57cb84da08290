"""The files of a feature cache: their names, which utterance belongs in which, and what they hold together.

Promises: a header is what the file holds now, or the file is damaged, though another process may be replacing it; rows
are read from the very file that their header is of. It neither writes files nor judges which are wanted (see
`asr_doge.data.feature_cache` and `asr_doge.data.feature_cache_writer`).
"""

import re
from collections.abc import Mapping
from functools import partial

from safetensors import safe_open
from torch import Tensor

from asr_doge.data.feature_shards import (
    DamagedShardError,
    Entry,
    Rows,
    ShardHeader,
    Source,
    Storage,
    header_digest,
    is_of_ctc,
    read_header,
    read_rows,
    row_range,
)
from asr_doge.data.manifest import id_digest
from asr_doge.data.stores import Store
from asr_doge.errors import DataError

SHARD_NAME = re.compile(r"features-(\d{5,})-of-(\d{5,})\.safetensors")
READINGS = 3
"""Times that a file is read before it counts as damaged: another process may be replacing it."""
REMEDY = "run 'asr-doge features' again"
OTHER_SOURCE_REMEDY = "with another --output_dir, or with --overwrite to replace them"


def shard_count(seconds: float, shard_seconds: float) -> int:
    """Number of files for this much audio: the power of two that leaves at most `shard_seconds` for each on average."""
    count = 1
    while count * shard_seconds < seconds:
        count *= 2
    return count


def shard_of(utterance_id: str, num_shards: int) -> int:
    """The file, from 0, that an utterance belongs in: the same on every machine."""
    return int.from_bytes(id_digest(utterance_id)[:8], "big") % num_shards


def numbers_of(name: str) -> tuple[int, int]:
    """A file's number and of how many it is one."""
    match = SHARD_NAME.fullmatch(name)
    assert match is not None  # only such names are listed
    return int(match[1]), int(match[2])


def read_headers(store: Store) -> tuple[dict[str, ShardHeader], dict[str, DamagedShardError]]:
    """Headers of the whole files, and what is wrong with the others."""
    headers: dict[str, ShardHeader] = {}
    damaged: dict[str, DamagedShardError] = {}
    for name, size in sorted(store.sizes().items()):
        if SHARD_NAME.fullmatch(name):
            try:
                headers[name] = read_header_of(store, name, size)
            except DamagedShardError as error:
                damaged[name] = error
            except FileNotFoundError:  # removed meanwhile
                continue
    return headers, damaged


def read_header_of(store: Store, name: str, size: int | None = None) -> ShardHeader:
    """A file's header; its size may be given as it was when the folder was listed.

    Raises:
        DamagedShardError: it is damaged, and not only because it was being replaced.
        FileNotFoundError: it has gone.
    """
    for reading in range(READINGS):
        if size is None:
            size = store.sizes().get(name)
        if size is None:
            raise FileNotFoundError(name)
        try:
            return read_header(partial(store.read, name), size)
        except (DamagedShardError, DataError):
            if reading == READINGS - 1:
                raise
            size = None
    raise AssertionError("unreachable")


class Index:
    """Maps each utterance to its file and entry; of several, that of the cache with more files counts."""

    def __init__(self, headers: Mapping[str, ShardHeader]) -> None:
        self.entries: dict[str, tuple[str, Entry]] = {}
        self.unreadable: dict[str, str] = {}
        for name in sorted(headers, key=lambda name: numbers_of(name)[::-1]):
            self.add(name, headers[name])

    def add(self, name: str, header: ShardHeader) -> None:
        """Add the utterances of a file, which replace those added before."""
        for id_, entry in header.entries.items():
            self.entries[id_] = name, entry
            self.unreadable.pop(id_, None)
        for id_, reason in header.unreadable.items():
            self.unreadable[id_] = reason
            self.entries.pop(id_, None)


class ReplacedError(Exception):
    """Raised if a file was replaced after its header was read."""


class OpenShard:
    """The stored rows of one file: mapped into memory where it is on this machine, else fetched."""

    def __init__(self, store: Store, name: str, header: ShardHeader) -> None:
        self._read = partial(store.read, name)
        self._header = header
        self._mapped: dict[str, Tensor] | None = None
        path = store.local_path(name)
        if path is not None:
            file = safe_open(path, framework="pt")
            if header_digest(file.metadata()) != header.digest:
                raise ReplacedError
            self._mapped = {tensor: file.get_tensor(tensor) for tensor in header.tensors}

    def read(self, place: Rows, with_ctc: bool = True) -> dict[str, Tensor]:
        """Rows of one copy, by the name of their tensor; those of the CTC head are fetched only if `with_ctc`."""
        names = [name for name in self._header.tensors if with_ctc or not is_of_ctc(name)]
        if self._mapped is None:
            return read_rows(self._read, self._header, place, names)
        return {name: self._mapped[name][slice(*row_range(name, place))] for name in names}


def difference(header: ShardHeader, source: Source, storage: Storage) -> str:
    """The first difference of a file from the wanted source and storage, as `encoder (front_end_version 1, not 2)`."""
    for field in sorted({*header.source, *source}):
        found, wanted = header.source.get(field), source.get(field)
        if found != wanted:
            return f"encoder ({field} {found!r}, not {wanted!r})"
    for field, wanted in vars(storage).items():
        found = getattr(header.storage, field)
        if found != wanted:
            return f"storage (--{field} {found}, not {wanted})"
    raise ValueError("there is no difference")
