"""Write a folder atomically.

Promises: whenever the process is killed, the folder has either its old content or all of the new.
It does not prevent two processes from replacing each other's folder, and does not know the content.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside `folder` to write to; if nothing fails, it is renamed to `folder` and replaces it.

    The remains of an attempt that was killed are removed by the next one; those of one that fails, at once.
    """
    partial, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        old.rename(folder)  # an earlier process was killed between the two renames below
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # may be gigabytes under a hidden name
        raise
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
