"""Unpack a corpus archive from an untrusted source.

Promises: the corpus's folder appears completely or not at all; nothing is written outside the output folder; no links
or devices are created. A truncated or damaged archive is found even if no checksum is known. It downloads nothing.
"""

import os
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from asr_doge.errors import DataError
from asr_doge.progress import progress_bar


def unpack(archive: Path, output_dir: Path, unpacks_to: str) -> None:
    """Unpack an archive so that `output_dir/unpacks_to` exists and is complete.

    Other content of the archive (LibriSpeech's `SPEAKERS.TXT`) is put beside it, unless it is there already.

    Args:
        archive: a tar file, compressed or not.
        output_dir: an existing folder.
        unpacks_to: a folder in the archive, such as `LibriSpeech/dev-clean`.

    Raises:
        DataError: the archive is damaged, unsafe, or has no such folder, or the disk is full.
    """
    work = output_dir / f".{archive.name}.unpacking"
    shutil.rmtree(work, ignore_errors=True)  # left by a run that was killed
    try:
        work.mkdir()
        _extract(archive, work)
        if not (work / unpacks_to).is_dir():
            raise DataError(f"{archive} holds no {unpacks_to}: it is another archive; remove it and run again")
        if hasattr(os, "sync"):
            os.sync()  # otherwise a power cut could leave the folder with empty files
        _place(work, output_dir, PurePosixPath(unpacks_to).parts)
    except OSError as error:
        finding = f"cannot be unpacked to {output_dir} ({error.strerror})"
        raise DataError(f"{archive} {finding}: check the folder and its free space, and run again") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _extract(archive: Path, folder: Path) -> None:
    damaged = f"{archive} is truncated or damaged: remove it and run again"
    size, title = archive.stat().st_size, f"unpacking {archive.name}"
    try:
        with (
            archive.open("rb") as raw,
            tarfile.open(fileobj=raw) as tar,
            progress_bar(total=size, desc=title, unit="B", unit_scale=True) as bar,
        ):
            for member in tar:
                if not (member.issym() or member.islnk()):  # no corpus needs one
                    _refuse_escape(archive, member.name)
                    tar.extract(member, folder, filter="data")
                bar.update(raw.tell() - bar.n)
            content = tar.fileobj
            while content is not None and content.read(1 << 20):
                pass  # read to the very end, where compressed files have their checksum
    except tarfile.FilterError as error:
        raise DataError(f"{archive} is not safe to unpack: {error}; get it from its publisher") from None
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{damaged} ({error})") from None
    except OSError as error:
        if error.errno is None:  # how gzip and bz2 report a bad file
            raise DataError(f"{damaged} ({error})") from None
        raise


def _refuse_escape(archive: Path, name: str) -> None:
    """Refuse absolute names: the `data` filter would only strip the slash, but such a name is no accident."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{archive} is not safe to unpack: {name!r} leads out of it; get it from its publisher")


def _place(source: Path, target: Path, parts: tuple[str, ...]) -> None:
    """Move `source/parts[0]/…` to `target`; the last folder comes last, which completes the corpus."""
    first, *rest = parts
    if not rest:
        (source / first).rename(target / first)
        return
    (target / first).mkdir(exist_ok=True)
    for beside in sorted((source / first).iterdir()):
        if beside.name != rest[0] and not (target / first / beside.name).exists():
            beside.rename(target / first / beside.name)
    _place(source / first, target / first, tuple(rest))
