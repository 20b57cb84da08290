"""Rows of a Parquet file by number, one row group in memory at a time.

Promises: a file whose bytes are damaged is told from one whose bytes cannot be fetched. It decodes nothing.
"""

import threading
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import accumulate
from typing import Any, BinaryIO

from asr_doge.data.stores import one_line
from asr_doge.scaling.items import import_parquet, open_bytes


class _Fetched:
    """An open file that remembers the error with which its bytes could not be had."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.failure: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        """Read like any file, and keep the error."""
        try:
            return self._file.read(size)
        except Exception as error:
            self.failure = error
            raise


@contextmanager
def _parsed(url: str) -> Iterator[_Fetched]:
    """A file to be parsed by Arrow, whose `OSError` without a number says that its bytes are damaged.

    Raises:
        ValueError: they are.
        Exception: they cannot be fetched, as the store says it.
    """
    with open_bytes(url) as opened:
        fetched = _Fetched(opened)
        try:
            yield fetched
        except OSError as error:
            if fetched.failure is not None:
                raise fetched.failure from None
            if error.errno is None:
                raise ValueError(one_line(error)) from None
            raise


class _ParquetRows:
    """The column `audio` of a Parquet file, of which the row group that was read last is kept."""

    def __init__(self, url: str) -> None:
        self._url, self._parquet = url, import_parquet(url)
        self._lock = threading.Lock()
        with _parsed(url) as opened:
            metadata = self._parquet.ParquetFile(opened).metadata
            counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._starts = [0, *accumulate(counts)]
        self._group, self._rows = -1, None

    def row(self, number: int) -> dict[str, Any]:
        """A row's `audio`."""
        group = bisect_right(self._starts, number) - 1
        with self._lock:
            if group != self._group:
                self._group, self._rows = -1, None  # before the next is there, so that memory holds one
                with _parsed(self._url) as opened:
                    self._rows = self._parquet.ParquetFile(opened).read_row_group(group, columns=["audio"])["audio"]
                self._group = group
            assert self._rows is not None
            return self._rows[number - self._starts[group]].as_py() or {}


@lru_cache(maxsize=2)
def parquet_rows(url: str, stamp: str) -> _ParquetRows:
    """The rows of a file, as long as it is the same.

    Raises:
        ValueError: it is damaged.
        Exception: it cannot be fetched, as the store says it.
    """
    del stamp
    return _ParquetRows(url)
