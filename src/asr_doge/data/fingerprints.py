"""Detect whether a recording is still the one whose features were computed.

Promises: a fingerprint has the recording's size, modification time and a digest of its content. A recording of another
size has changed; one of the same size and time counts as unchanged, unless all content is to be compared. If only the
time differs, the content decides, so a corpus that was copied or moved needs no recomputation. The content of such a
copy is read once: the result is noted in a file of the cache, `KNOWN_COPIES`, if that can be written.
It knows no features, and does not decode recordings.
"""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from asr_doge.data.stores import LocalStore, Store
from asr_doge.errors import DataError

KNOWN_COPIES = "recordings.txt"
"""File with a line for each size, time and content that were found to match."""
_THREADS = 8


def audio_stamp(path: str | os.PathLike[str]) -> str:
    """Size and modification time of a recording.

    Raises:
        DataError: there is no such file.
    """
    try:
        status = Path(path).stat()
    except OSError as error:
        raise _unreadable(path, error) from None
    return f"{status.st_size}-{status.st_mtime_ns}"


def fingerprint(path: str | os.PathLike[str]) -> str:
    """Size, modification time and content digest of a recording.

    Raises:
        DataError: it cannot be read.
    """
    stamp = audio_stamp(path)  # before the content: if the recording changes meanwhile, the stamp is outdated
    return f"{stamp}-{content_digest(path)}"


class KnownCopies:
    """Compares recordings with their fingerprints, and remembers the results in the folder of a feature cache."""

    def __init__(self, store: Store) -> None:
        self._path = store.folder / KNOWN_COPIES if isinstance(store, LocalStore) else None
        self._known: frozenset[str] | None = None

    def unchanged(self, recordings: Sequence[tuple[Path, str]], *, verify: bool = False) -> list[bool]:
        """Whether each recording, which exists, matches its fingerprint.

        Args:
            recordings: path and fingerprint of each. One without content, from an older version, needs a matching time.
            verify: whether to compare the content of all.

        Returns:
            False also for a recording that cannot be read; the error is reported when it is read.
        """
        found: list[bool | None] = [self._at_a_glance(*recording, verify) for recording in recordings]
        doubtful = [index for index, same in enumerate(found) if same is None]
        if not doubtful:
            return [bool(same) for same in found]
        proven: set[str] = set()
        with ThreadPoolExecutor(_THREADS) as threads:
            prints = threads.map(lambda index: _readable_fingerprint(recordings[index][0]), doubtful)
            for index, seen in zip(doubtful, tqdm(prints, "comparing", len(doubtful), disable=None), strict=True):
                found[index] = _content(seen) == _content(recordings[index][1])
                if found[index] and seen != recordings[index][1]:
                    proven.add(seen)
        self._note(proven)
        return [bool(same) for same in found]

    def _at_a_glance(self, path: Path, wanted: str, verify: bool) -> bool | None:
        """Whether the recording is the same; None if only its content can tell."""
        try:
            stamp, content = audio_stamp(path), _content(wanted)
        except DataError:
            return False
        if stamp.partition("-")[0] != wanted.partition("-")[0]:
            return False
        if not content:
            return stamp == wanted and not verify
        if verify or not (wanted == f"{stamp}-{content}" or f"{stamp}-{content}" in self._read()):
            return None
        return True

    def _read(self) -> frozenset[str]:
        if self._known is None:
            lines: list[str] = []
            with suppress(OSError):
                lines = self._path.read_text(errors="replace").split("\n") if self._path else []
            self._known = frozenset(lines)
        return self._known

    def _note(self, proven: set[str]) -> None:
        if self._path is None or not proven - self._read():
            return
        # A line truncated when a process was killed is not a fingerprint; the next one starts on a new line.
        with suppress(OSError), self._path.open("a") as file:
            file.write("\n" + "".join(f"{line}\n" for line in sorted(proven - self._read())))
        self._known = self._read() | proven


def _readable_fingerprint(path: Path) -> str:
    """The fingerprint, or an empty string if the file cannot be read."""
    try:
        return fingerprint(path)
    except DataError:
        return ""


def _content(print_: str) -> str:
    """The digest in a fingerprint; empty if it has none."""
    return print_.split("-", 2)[2] if print_.count("-") >= 2 else ""


def content_digest(path: str | os.PathLike[str]) -> str:
    """Digest of a recording's bytes.

    Raises:
        DataError: it cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    try:
        with Path(path).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise _unreadable(path, error) from None
    return digest.hexdigest()


def _unreadable(path: str | os.PathLike[str], error: OSError) -> DataError:
    return DataError(f"{path} cannot be read ({error.strerror}): correct the manifest or restore the file")
