"""Write a file so that nobody ever meets half of it.

Promises: under the target's name lies either the old content or the whole new one, even if the process is killed or the
disk fills up. It does not keep two processes from replacing each other's file.
"""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from asr_doge.errors import DataError

LONGEST_NAME_BYTES = 255
"""Of a file, without its folder, on nearly all file systems."""
TEMPORARY_SUFFIX = ".tmp"
"""Ending of a file that is being written; one that outlives its process is safe to delete."""


def check_writable(folder: Path) -> None:
    """Find out that nothing can be written to a folder before hours of work are spent on what is to go there.

    Raises:
        DataError: the folder cannot be written to, or cannot be made.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise DataError(f"{folder} cannot be made: {existing} is a file; choose another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise DataError(
            f"{folder} cannot be written to: change the permissions of {existing}, or choose another folder"
        )


def write_atomically(path: Path, content: bytes) -> None:
    """Put `content` at `path`, by way of a temporary file beside it; missing folders are made.

    Raises:
        DataError: the folder cannot be written to, or the disk is full.
    """
    temporary = path.with_name(_temporary_name(path.name))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # else a power cut can leave the new name with no content
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}): check the folder and the free space") from error
    finally:
        with suppress(OSError):  # gone after success; what cannot be removed must not hide the first error
            temporary.unlink()


def _temporary_name(name: str) -> str:
    """The name of a file with an ending, or, where no file could be called so, a digest of it with the ending."""
    ending = f".{os.getpid()}{TEMPORARY_SUFFIX}"
    if len(os.fsencode(name + ending)) > LONGEST_NAME_BYTES:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return name + ending
