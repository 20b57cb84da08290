"""Find the recordings in a folder.

Promises: every file that the decoders can read is found, also in linked folders, each folder once; skipped files are
counted by reason. It opens no recording, except the first bytes of a `.ts`, which may be TypeScript.
"""

import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from asr_doge.audio.packet_formats import is_transport_stream
from asr_doge.audio.sound import log_note
from asr_doge.errors import AudioError

_SOUND = """
aa3 aac aax ac3 adts afc aif aifc aiff amr ape apl au avr awb bwf caf dff dsf dss dts dtshd eac3 ec3 fap flac iff ircam
m2a m4a m4b m4p m4r mac mka mlp mp+ mp1 mp2 mp3 mpa mpc mpga mpp nist oga ogg oma omg opus paf pvf qcp ra ram rf64 sd2
sds sf shn snd sox sph spx svx tak thd tta voc w64 wav wave weba wma wv wve xi xwma 8svx
"""
_VIDEO = """
3g2 3gp 3gpp asf avi dif divx dv f4a f4b f4v flv isma ismv m2p m2t m2ts m4v mk3d mkv mov mp4 mpe mpeg mpg mts mxf nut
ogm ogv ogx qt rm rmvb tod trp ts vob webm wmv wtv
"""
AUDIO_EXTENSIONS = frozenset(f".{ending}" for ending in (_SOUND + _VIDEO).split())
"""Lower-case extensions of the files that a folder search includes; `read_audio` itself looks at the content only."""


@dataclass
class FolderSearch:
    """The result of searching a folder and its subfolders.

    Attributes:
        folder: the folder.
        paths: its recordings, sorted.
        skipped: number of skipped files, by reason.
    """

    folder: Path
    paths: list[Path] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def note(self) -> str | None:
        """What was skipped, in one line; None if nothing was."""
        if not self.skipped:
            return None
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items()))
        return f"{self.folder}: {len(self.paths)} recordings found; passed over: {reasons}"


def search_folder(folder: str | os.PathLike[str]) -> FolderSearch:
    """List the recordings in a folder and its subfolders, and count the rest.

    Raises:
        AudioError: no such folder, no read permission, or no recording in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        found = "is a file, not a folder" if folder.exists() else "does not exist"
        raise AudioError(f"{folder} {found}: pass a folder of recordings.")
    search = FolderSearch(folder)
    _search(folder, search, set())
    search.paths.sort()
    if not search.paths:
        rest = f" ({search.note})" if search.skipped else ""
        raise AudioError(
            f"{folder} holds no recordings{rest}: supported endings are {' '.join(sorted(AUDIO_EXTENSIONS))}."
        )
    return search


def find_audio_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The recordings in a folder and its subfolders, sorted by path; hidden files and folders are skipped.

    Raises:
        AudioError: as in `search_folder`.
    """
    search = search_folder(folder)
    if any(reason in search.skipped for reason in _LOSSES):
        log_note(str(search.note))
    return search.paths


_HIDDEN, _OTHER = "hidden", "of other types"
_UNREADABLE, _AGAIN = "folders that may not be read", "links to folders that were searched already"
_SPECIAL = "pipes, sockets or devices"
_LOSSES = (_UNREADABLE, _SPECIAL)
"""Reasons under which a recording may have been skipped."""


def _search(folder: Path, search: FolderSearch, seen: set[tuple[int, int]]) -> None:
    """Add the content of a folder; links are followed, but each folder is searched only once."""
    try:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            search.skipped[_AGAIN] += 1
            return
        seen.add((status.st_dev, status.st_ino))
        entries = sorted(os.scandir(folder), key=lambda entry: (entry.is_symlink(), entry.name))
    except OSError:
        search.skipped[_UNREADABLE] += 1
        return
    for entry in entries:
        # "._talk.wav" and the like are metadata of macOS for talk.wav, without sound.
        if entry.name.startswith("."):
            search.skipped[_HIDDEN] += 1
        elif entry.is_dir():
            _search(folder / entry.name, search, seen)
        else:
            reason = _why_not(folder / entry.name)
            if reason is None:
                search.paths.append(folder / entry.name)
            else:
                search.skipped[reason] += 1


def _why_not(path: Path) -> str | None:
    """Why a file is skipped; None for a recording."""
    if path.suffix.lower() not in AUDIO_EXTENSIONS:
        return _OTHER
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return _SPECIAL
        if path.suffix.lower() == ".ts":
            with path.open("rb") as file:
                return None if is_transport_stream(file.read(1024)) else _OTHER
    except OSError:
        return None  # broken links and unreadable files are reported when they are read
    return None
