"""Write a folder so that nobody ever meets half of it.

Promises: under the folder's name lies either what was there before or all of the new, whenever the process is killed.
It does not keep two processes from replacing each other's folder, and knows nothing of what is in it.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder` to write to, which takes its name, and its place, if nothing goes wrong.

    What is left of an attempt that was killed is cleared away by the next; of one that fails, at once.
    """
    partial, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        old.rename(folder)  # an earlier one was killed between the two renames below
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # gigabytes, under a name that nobody sees
        raise
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
