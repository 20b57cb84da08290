"""The declaration of a corpus, and the result of reading one.

Promises: a corpus is data: names, addresses and two small functions. Reading a split lists its recordings in an order
that depends on names only; a fault in one of them affects only that one. It opens no recording and normalizes no text.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from asr_doge.errors import DataError

# Reasons for rejection that several modules use.
NO_TRANSCRIPT, MISSING_AUDIO, MALFORMED = "no transcript", "missing audio", "malformed line"
ID_USED_TWICE = "id used twice"


@dataclass(frozen=True)
class SourceUtterance:
    """One recording as listed by its corpus."""

    id: str
    audio_path: Path
    raw_text: str
    """The transcript, unchanged."""
    speaker: str | None = None
    language: str | None = None


@dataclass(frozen=True)
class Rejected:
    """A recording or a transcript that cannot be used."""

    id: str
    """Its id, or the file and line that should have an id."""
    reason: str
    """The reason in a few words, by which rejections are counted."""
    detail: str | None = None
    """A line that names the file and the fault; None if it only exceeds a limit."""


Listed = SourceUtterance | Rejected


@dataclass(frozen=True)
class Archive:
    """A file to download."""

    urls: tuple[str, ...]
    """Addresses of the same file; the first is tried first."""
    unpacks_to: str
    """The folder in it that is checked for completeness, such as `LibriSpeech/dev-clean`."""
    unpacked_bytes: int
    """Disk space that it takes once unpacked, rounded up; an estimate."""
    bytes: int | None
    """Exact size, if known."""
    md5: str | None
    """MD5 that its publisher states, if known."""
    hours: float | None
    """Hours of speech in it, as stated by its publisher."""

    @property
    def name(self) -> str:
        """Its file name."""
        return self.urls[0].rpartition("/")[2]


@dataclass(frozen=True)
class Corpus:
    """A corpus, or a layout that any corpus may have. Both functions take the folder, which exists."""

    layout: str
    """Its layout and its splits, for help texts."""
    splits: Callable[[Path], list[str]]
    """Gives the names of the splits that a folder offers; of an open-ended set, the main ones."""
    list_split: Callable[[Path, str], Iterable[Listed] | None]
    """Gives the utterances of a split; None if the folder has no such split."""
    default_splits: tuple[str, str, str] = ("train", "dev", "test")
    """Default splits for training, tuning and testing; empty if the corpus does not have one."""
    root: str = ""
    """Folder that the archives unpack to: both it and the folder around it are accepted."""
    licence: str = ""
    """Licence of the recordings; empty for a layout."""
    archives: Mapping[str, Archive] = field(default_factory=dict)
    """The archives that can be downloaded, by split."""

    def read(self, folder: Path, split: str) -> list[Listed]:
        """List a split.

        Raises:
            DataError: no such folder or split, an empty split, or an unreadable list of transcripts.
        """
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder: give --data_dir the corpus's folder")
        root = folder / self.root if (folder / self.root).is_dir() else folder
        listed = list(self.list_split(root, split) or ())
        if listed:
            return listed
        found = self.splits(root)
        if split in found:
            raise DataError(f"split '{split}' of {folder} is empty: expected {self.layout}; fill it, or name another")
        remedy = f"choose from {', '.join(found)}" if found else f"expected {self.layout}; name another with --dataset"
        raise DataError(f"{folder} has no split '{split}': {remedy}")
