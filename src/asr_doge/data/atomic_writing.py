"""Write a file atomically.

Promises: the file has either its old content or all of the new, even if the process is killed or the disk fills up. It
does not prevent two processes from replacing each other's file.
"""

import hashlib
import os
import secrets
from contextlib import suppress
from pathlib import Path

from asr_doge.errors import DataError, StoreError

LONGEST_NAME_BYTES = 255
"""Longest file name, without its folder, on nearly all file systems."""
TEMPORARY_SUFFIX = ".tmp"
"""Extension of a file that is being written; if it outlives its process, it can be deleted safely."""


def existing_part(folder: Path) -> Path:
    """The folder itself if it exists, else the nearest of the folders around it that does."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def check_writable(folder: Path) -> None:
    """Check that a folder can be written to, before hours of work are spent on its future content.

    Raises:
        DataError: the folder cannot be written to, or cannot be created.
    """
    existing = existing_part(folder)
    if not existing.is_dir():
        raise DataError(f"{folder} cannot be made: {existing} is a file; choose another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise DataError(
            f"{folder} cannot be written to: change the permissions of {existing}, or choose another folder"
        )


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` by way of a temporary file beside it; missing folders are created.

    Raises:
        StoreError: the folder cannot be written to, or the disk is full.
    """
    temporary = path.with_name(_temporary_name(path.name))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # otherwise a power cut can leave the new name without content
        temporary.replace(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be written ({error.strerror}): check the folder and the free space") from error
    finally:
        with suppress(OSError):  # it is gone after success; a failure to remove it must not hide the first error
            temporary.unlink()


def _temporary_name(name: str) -> str:
    """The name with the extension added or, if that would be too long, a digest of the name with the extension."""
    # Two machines may share a folder, and the number of a process.
    ending = f".{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
    if len(os.fsencode(name + ending)) > LONGEST_NAME_BYTES:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return name + ending
