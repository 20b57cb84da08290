"""Download one file over HTTP, in spite of bad connections and servers.

Promises: the target is either missing or complete; partial data is kept beside it and continued, also by a later run. A
server that stalls, breaks off, states a wrong length or ignores ranges costs time, not correctness: the known size and
MD5 decide whether the file is complete, not what a server says. It knows nothing of archives.

urllib does the HTTP: no available library does both resuming and checking, which matter here.
"""

import errno
import hashlib
import re
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from asr_doge.errors import DataError
from asr_doge.progress import progress_bar

PART_SUFFIX = ".part"
"""Extension of a file that is not complete yet."""

_BLOCK_BYTES = 1 << 18
_ATTEMPTS = 4  # successive ones without new data
_FIRST_PAUSE_SECONDS = 0.5  # doubled after each such attempt


class _MirrorError(Exception):
    """An address that does not have the file, or has another one."""


class _UnknownHostError(_MirrorError):
    """An address whose host cannot be found, as without a network."""


def fetch(urls: Sequence[str], target: Path, size: int | None, md5: str | None, timeout: float) -> None:
    """Download a file, continuing the partial data of an earlier run.

    Args:
        urls: addresses of the same file, tried in this order.
        target: where to put it; an existing file is checked and left alone.
        size: in bytes, if known.
        md5: of its content, if known.
        timeout: seconds without a byte after which a connection is closed and reopened.

    Raises:
        DataError: no address has the file, the target's present content is wrong, or the disk is full.
    """
    if target.exists():
        if fault := _fault(target, size, md5):
            raise DataError(f"{target} is not the file that its publisher describes ({fault}): remove it and run again")
        return
    part = target.with_name(target.name + PART_SUFFIX)
    faults: list[str] = []
    unknown: list[str] = []
    # Partial data of an earlier run may be bad, which only the checksum of the whole shows: then start again.
    for url in (*urls, *urls) if part.exists() else urls:
        try:
            _fetch_from(url, part, size, timeout)
            if fault := _fault(part, size, md5):
                part.unlink()
                raise _MirrorError(fault)
        except _MirrorError as error:
            unknown += [str(error)] * isinstance(error, _UnknownHostError)
            faults.append(f"{url}: {error}")
            continue
        part.replace(target)
        return
    if len(unknown) == len(faults):
        hosts = ", ".join(dict.fromkeys(unknown))
        raise DataError(f"{target.name} cannot be fetched ({hosts}): check the network and run again")
    found = "; ".join(dict.fromkeys(faults))
    raise DataError(f"{target.name} cannot be fetched ({found}): run again, or name another address with --mirror")


def _fetch_from(url: str, part: Path, size: int | None, timeout: float) -> None:
    """Complete `part` from one address."""
    fruitless, held = 0, _size(part)
    furthest = held
    with progress_bar(
        total=size,
        initial=_size(part),
        desc=part.name.removesuffix(PART_SUFFIX),
        unit="B",
        unit_scale=True,
    ) as bar:
        while True:
            try:
                problem = _receive(url, part, size, timeout, bar)
            except _UnknownHostError as error:
                if furthest == held:  # otherwise the network worked a moment ago, and may come back
                    raise
                problem = str(error)
            if problem is None:
                return
            fruitless = 0 if _size(part) > furthest else fruitless + 1
            furthest = max(furthest, _size(part))
            if fruitless == _ATTEMPTS:
                raise _MirrorError(problem)
            time.sleep(_FIRST_PAUSE_SECONDS * 2**fruitless)


def _receive(url: str, part: Path, size: int | None, timeout: float, bar: "tqdm[None]") -> str | None:
    """Append the data of one connection to `part`; returns why it is not complete, or None.

    Raises:
        _MirrorError: retrying is of no use.
    """
    have = _size(part)
    if size is not None and have >= size:
        return None  # excess data is found by the check
    headers = {"User-Agent": "asr-doge", "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with urlopen(Request(url, headers=headers), timeout=timeout) as response:
            promised = _append(response, part, have, size, bar)
    except HTTPError as error:
        if error.code == 416 and have:  # no data beyond ours: the file is complete, or its start is bad
            held = error.headers.get("Content-Range", "").rpartition("/")[2]
            if size is None and not (held.isdigit() and int(held) < have):
                return None
            part.unlink()
            return f"it has no byte beyond {have:,}"
        if 400 <= error.code < 500 and error.code not in (408, 429):
            raise _MirrorError(f"HTTP {error.code} {error.reason}") from None
        return f"HTTP {error.code} {error.reason}"
    except ValueError as error:  # an invalid address
        raise _MirrorError(str(error)) from None
    except (OSError, HTTPException) as error:
        cause = getattr(error, "reason", error)  # urllib wraps connection errors
        if isinstance(cause, socket.gaierror):
            raise _UnknownHostError(f"{urlsplit(url).hostname} cannot be found") from None
        return f"no byte for {timeout:g} s" if isinstance(cause, TimeoutError) else str(cause) or type(cause).__name__
    whole = promised if size is None else size
    if whole is None or _size(part) >= whole:
        return None
    return f"it broke off after {_size(part):,} of {whole:,} bytes"


def _append(response: HTTPResponse, part: Path, have: int, size: int | None, bar: "tqdm[None]") -> int | None:
    """Append a response to the `have` bytes of `part`; returns the total length as stated by the server."""
    start, promised = _range(response)
    if start > have:
        raise _MirrorError(f"it answers from byte {start:,} when asked from {have:,}")
    bar.total = promised if size is None else size
    known = have - start  # bytes sent again, for example by a server that ignores ranges
    try:
        file = part.open("ab")
    except OSError as error:
        raise _disk_error(part, error) from error
    with file:
        while size is None or have < size:
            block = response.read1(_BLOCK_BYTES)
            if not block:
                break
            new = block[known:] if size is None else block[known:][: size - have]
            known = max(known - len(block), 0)
            try:
                file.write(new)
                file.flush()
            except OSError as error:
                with suppress(OSError):
                    file.close()
                raise _disk_error(part, error) from error
            have += len(new)
            bar.update(len(new))
    return promised


def _range(response: HTTPResponse) -> tuple[int, int | None]:
    """Where a response starts in the file, and the total length that it states."""
    if response.status == 206:
        stated = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if stated is None:
            raise _MirrorError("it sends a part without saying which")
        return int(stated[1]), None if stated[2] == "*" else int(stated[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _fault(path: Path, size: int | None, md5: str | None) -> str | None:
    """Why a file is not the requested one; None if it is."""
    if size is not None and _size(path) != size:
        return f"{_size(path):,} bytes, not {size:,}"
    if md5 is None:
        return None
    digest = hashlib.md5(usedforsecurity=False)
    with (
        path.open("rb") as file,
        progress_bar(total=_size(path), desc=f"checking {path.name}", unit="B", unit_scale=True) as bar,
    ):
        while block := file.read(1 << 20):
            digest.update(block)
            bar.update(len(block))
    return None if digest.hexdigest() == md5 else f"MD5 {digest.hexdigest()}, not {md5}"


def _disk_error(part: Path, error: OSError) -> DataError:
    remedy = "free some space" if error.errno == errno.ENOSPC else "check the folder"
    return DataError(f"{part} cannot be written ({error.strerror}): {remedy} and run again; what arrived is kept")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
