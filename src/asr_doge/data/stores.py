"""A folder of files, local or in the cloud, with the few operations that the feature cache needs.

Promises: a file appears under its name completely or not at all; a failed operation is one `StoreError` line. A path
with `://` goes through fsspec (which includes `memory://`; `s3://`, `gs://` and `https://` need an extra each); any
other path is a local folder. It does not know the content of the files.
"""

import asyncio
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from asr_doge.data.atomic_writing import TEMPORARY_SUFFIX, existing_part, write_atomically
from asr_doge.errors import DataError, StoreError

_PACKAGES = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "http": "http", "https": "http"}
"""The extra that a protocol needs."""
_WEB_SECONDS = 30.0
"""Time in which a web server must accept a connection, and send more of a file."""


class Store(Protocol):
    """A folder; file names are without folders."""

    def sizes(self) -> dict[str, int]:
        """Bytes of each file; empty if there is no such folder."""

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of a file; fewer if it ends before.

        Raises:
            StoreError: it cannot be read.
        """

    def content(self, name: str) -> bytes | None:
        """All bytes of a file; None if there is no such file.

        Raises:
            StoreError: it cannot be read.
        """

    def write(self, name: str, content: bytes) -> None:
        """Write a file, completely or not at all; an existing one is replaced.

        Raises:
            StoreError: it cannot be written.
        """

    def remove(self, name: str) -> None:
        """Remove a file; a missing one is not an error."""

    def free_bytes(self) -> int | None:
        """Free space; None if there is no limit or it is not known."""

    def local_path(self, name: str) -> Path | None:
        """The path of a file that can be mapped into memory, if any."""


def open_store(folder: str | os.PathLike[str]) -> Store:
    """The store at a path or URL.

    Raises:
        DataError: a protocol that fsspec does not know, or whose package is not installed.
    """
    url = os.fspath(folder)
    if not is_url(url):
        return LocalStore(Path(url))
    filesystem, root = open_filesystem(url)
    return RemoteStore(url, filesystem, root.rstrip("/"))


def is_url(name: str) -> bool:
    """Whether a name is for fsspec."""
    return "://" in name


def is_web(url: str) -> bool:
    """Whether a name is of a web server."""
    return url.partition("://")[0] in ("http", "https")


def open_filesystem(url: str) -> tuple[Any, str]:
    """Fsspec's file system of a URL, and the path in it.

    Raises:
        DataError: a protocol that fsspec does not know, or whose package is not installed.
    """
    protocol = url.partition("://")[0]
    try:
        import fsspec  # here, since only remote stores need it

        filesystem, root = fsspec.core.url_to_fs(url, **(_web_options() if is_web(url) else {}))
    except ImportError:
        extra = _PACKAGES.get(protocol)
        remedy = f"pip install 'asr-doge[{extra}]'" if extra else f"install fsspec's package for {protocol}://"
        raise DataError(f"{url} needs a package that is not installed: {remedy}") from None
    except ValueError as error:
        raise DataError(f"{url} cannot be opened ({error}): give a folder, s3://… or gs://…") from None
    return filesystem, root


def _web_options() -> dict[str, Any]:
    from aiohttp import ClientTimeout

    # Not aiohttp's own limit of five minutes, which a long recording may take and a server that is gone should not.
    limit = ClientTimeout(total=None, sock_connect=_WEB_SECONDS, sock_read=_WEB_SECONDS)
    return {"client_kwargs": {"timeout": limit}}


@dataclass(frozen=True)
class LocalStore:
    """A local folder; created when the first file is written."""

    folder: Path

    def __str__(self) -> str:
        return str(self.folder)

    def sizes(self) -> dict[str, int]:
        """See `Store.sizes`; temporary files are not included."""
        if not self.folder.exists():
            return {}
        try:
            sizes: dict[str, int] = {}
            with os.scandir(self.folder) as found:
                for file in found:
                    if file.is_file() and not file.name.endswith(TEMPORARY_SUFFIX):
                        with suppress(FileNotFoundError):  # another process removed it meanwhile
                            sizes[file.name] = file.stat().st_size
            return sizes
        except OSError as error:
            raise StoreError(f"{self.folder} cannot be read ({error.strerror}): give a folder") from None

    def read(self, name: str, start: int, stop: int) -> bytes:
        """See `Store.read`."""
        try:
            with (self.folder / name).open("rb") as file:
                file.seek(start)
                return file.read(stop - start)
        except OSError as error:
            raise StoreError(f"{self.folder / name} cannot be read ({error.strerror})") from None

    def content(self, name: str) -> bytes | None:
        """See `Store.content`."""
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{self.folder / name} cannot be read ({error.strerror})") from None

    def write(self, name: str, content: bytes) -> None:
        """See `Store.write`."""
        write_atomically(self.folder / name, content)

    def remove(self, name: str) -> None:
        """See `Store.remove`."""
        (self.folder / name).unlink(missing_ok=True)

    def remove_leftovers(self, name: str) -> None:
        """Remove a temporary file that a killed process left; not while another process may be writing it."""
        for path in self.folder.glob(f"{name}.*{TEMPORARY_SUFFIX}"):
            path.unlink(missing_ok=True)

    def free_bytes(self) -> int | None:
        """See `Store.free_bytes`."""
        return shutil.disk_usage(existing_part(self.folder)).free

    def local_path(self, name: str) -> Path | None:
        """See `Store.local_path`."""
        return self.folder / name


@dataclass(frozen=True)
class RemoteStore:
    """A folder accessed through fsspec; a file is one object, which such stores replace as a whole."""

    url: str
    filesystem: Any
    root: str

    def __str__(self) -> str:
        return self.url

    def sizes(self) -> dict[str, int]:
        """See `Store.sizes`."""
        try:
            self.filesystem.invalidate_cache()  # other machines write here too
            found = self.filesystem.ls(self.root, detail=True)
        except FileNotFoundError:
            return {}
        except Exception as error:  # each cloud's client has its own errors
            raise StoreError(f"{self.url} cannot be read: {one_line(error)}") from error
        return {entry["name"].rpartition("/")[2]: entry["size"] for entry in found if entry["type"] == "file"}

    def read(self, name: str, start: int, stop: int) -> bytes:
        """See `Store.read`."""
        with self._reported(name, "read"):
            return bytes(self.filesystem.cat_file(f"{self.root}/{name}", start=start, end=stop))

    def content(self, name: str) -> bytes | None:
        """See `Store.content`."""
        with self._reported(name, "read"), suppress(FileNotFoundError):
            return bytes(self.filesystem.cat_file(f"{self.root}/{name}"))
        return None

    def write(self, name: str, content: bytes) -> None:
        """See `Store.write`."""
        with self._reported(name, "written"):
            self.filesystem.pipe_file(f"{self.root}/{name}", content)

    def remove(self, name: str) -> None:
        """See `Store.remove`."""
        with self._reported(name, "removed"), suppress(FileNotFoundError):  # another process may have removed it
            self.filesystem.rm_file(f"{self.root}/{name}")

    def free_bytes(self) -> int | None:
        """Unknown."""
        return None

    def local_path(self, name: str) -> Path | None:
        """None: the file is remote."""
        return None

    @contextmanager
    def _reported(self, name: str, what: str) -> Iterator[None]:
        """Tell of a failure in one line; each cloud's client has errors of its own."""
        try:
            yield
        except Exception as error:
            raise StoreError(f"{self.url}/{name} cannot be {what}: {one_line(error)}") from error


def http_status(error: Exception) -> int | None:
    """The status of HTTP that an error is about; clients for the web and for GCS have it under different names."""
    status = str(error.status if hasattr(error, "status") else getattr(error, "code", ""))
    return int(status) if status.isdigit() else None


def one_line(error: Exception) -> str:
    """The message of any library's error, without line breaks."""
    if isinstance(error, TimeoutError | asyncio.TimeoutError):  # two classes before Python 3.11
        return "no answer in time"
    status, message = http_status(error), getattr(error, "message", None)
    if status is not None and message:
        return f"the server answers {status} {message}"
    return " ".join(str(error).split()) or type(error).__name__
