"""Bring one file over HTTP, however badly the line and the server behave.

Promises: under the target's name lies nothing or the whole file; what has arrived is kept beside it and continued, by a
later run too. A server that stalls, breaks off, misstates the length or ignores ranges costs time, not correctness: the
known size and MD5 decide, not what a server says. It knows nothing of archives.

urllib does the HTTP: resuming and judging are what matters here, and no library that we could take does both.
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
"""Ending of a file that has not arrived in full."""

_BLOCK_BYTES = 1 << 18
_ATTEMPTS = 4  # in a row that bring nothing new
_FIRST_PAUSE_SECONDS = 0.5  # doubled after each such attempt


class _MirrorError(Exception):
    """An address that does not have the file, or has another one."""


class _UnknownHostError(_MirrorError):
    """An address whose host cannot be found, as without a network."""


def fetch(urls: Sequence[str], target: Path, size: int | None, md5: str | None, timeout: float) -> None:
    """Bring a file, continuing what an earlier run left.

    Args:
        urls: addresses of the same file, tried in this order.
        target: where to put it; a file that is there already is checked, and left alone.
        size: in bytes, if known.
        md5: of its content, if known.
        timeout: seconds without a byte after which a connection is given up and made anew.

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
    # What an earlier run left may itself be bad, which only the checksum of the whole tells: then begin anew.
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
    """Bring `part` to its end from one address."""
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
                if furthest == held:  # else the network was there a moment ago, and may come back
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
    """Append to `part` what one connection gives; returns why it is not the end, or None.

    Raises:
        _MirrorError: trying again is of no use.
    """
    have = _size(part)
    if size is not None and have >= size:
        return None  # more than the whole is found by the check
    headers = {"User-Agent": "asr-doge", "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with urlopen(Request(url, headers=headers), timeout=timeout) as response:
            promised = _append(response, part, have, size, bar)
    except HTTPError as error:
        if error.code == 416 and have:  # nothing lies beyond what is here: that is the end, or a bad beginning
            held = error.headers.get("Content-Range", "").rpartition("/")[2]
            if size is None and not (held.isdigit() and int(held) < have):
                return None
            part.unlink()
            return f"it has no byte beyond {have:,}"
        if 400 <= error.code < 500 and error.code not in (408, 429):
            raise _MirrorError(f"HTTP {error.code} {error.reason}") from None
        return f"HTTP {error.code} {error.reason}"
    except ValueError as error:  # an address that is none
        raise _MirrorError(str(error)) from None
    except (OSError, HTTPException) as error:
        cause = getattr(error, "reason", error)  # urllib wraps what goes wrong while connecting
        if isinstance(cause, socket.gaierror):
            raise _UnknownHostError(f"{urlsplit(url).hostname} cannot be found") from None
        return f"no byte for {timeout:g} s" if isinstance(cause, TimeoutError) else str(cause) or type(cause).__name__
    whole = promised if size is None else size
    if whole is None or _size(part) >= whole:
        return None
    return f"it broke off after {_size(part):,} of {whole:,} bytes"


def _append(response: HTTPResponse, part: Path, have: int, size: int | None, bar: "tqdm[None]") -> int | None:
    """Write a response behind the `have` bytes of `part`; returns the length of the whole as the server states it."""
    start, promised = _range(response)
    if start > have:
        raise _MirrorError(f"it answers from byte {start:,} when asked from {have:,}")
    bar.total = promised if size is None else size
    known = have - start  # bytes that come again, as from a server that ignores ranges
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
    """Where a response starts in the file, and how long it says that the file is."""
    if response.status == 206:
        stated = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if stated is None:
            raise _MirrorError("it sends a part without saying which")
        return int(stated[1]), None if stated[2] == "*" else int(stated[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _fault(path: Path, size: int | None, md5: str | None) -> str | None:
    """Why a file is not the one that was wanted."""
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
