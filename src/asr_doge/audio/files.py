"""Provide recordings as files on disk: check paths, and copy pipes to disk first.

Promises: a path that cannot be read gives one `AudioError` line with the remedy; a pipe is read once, to its end,
into a temporary file that is deleted afterwards; nothing waits for ever. It does not know audio.
"""

import os
import re
import select
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from asr_doge.errors import AudioError

PIPE_SECONDS = 60.0
"""Seconds without data after which a pipe counts as dead."""
_CHUNK_BYTES = 1 << 16


@contextmanager
def file_on_disk(path: Path) -> Iterator[Path]:
    """A file with the bytes of `path` that can be opened several times: itself, or a copy of a pipe's data.

    Raises:
        AudioError: missing, a folder or device, not permitted, empty, or a pipe that stops sending.
    """
    if not is_pipe(path):
        _check_readable(path)
        yield path
        return
    descriptor, name = tempfile.mkstemp(prefix="asr-doge-")
    spooled = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            try:
                for chunk in _chunks_of_pipe(path):
                    file.write(chunk)
            except OSError as error:
                raise AudioError(
                    f"{path} cannot be kept on disk ({error.strerror}): make room in {spooled.parent}."
                ) from None
        if not spooled.stat().st_size:
            raise AudioError(f"{path} is a pipe that sent nothing: check the command that writes to it.")
        yield spooled
    finally:
        with suppress(OSError):
            spooled.unlink()


def is_pipe(path: Path) -> bool:
    """Whether `path` can be read only once, like FIFOs, `<(…)` and `/dev/stdin` behind `|`.

    Raises:
        AudioError: it cannot be a recording: missing, a folder, a device, a socket or a terminal, or not permitted.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        printable = str(path).encode(errors="backslashreplace").decode()
        raise AudioError(f"{printable} has a name that is not UTF-8, which no decoder opens: rename it.") from None
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise _cannot_open(path, error) from None
    except ValueError:  # a NUL in the name
        raise AudioError(f"{str(path)!r} is no file name: check the path.") from None
    if stat.S_ISDIR(mode):
        raise AudioError(f"{path} is a folder: pass a recording, or list its recordings with `find_audio_files`.")
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        kind = "a socket" if stat.S_ISSOCK(mode) else "a device or terminal"
        raise AudioError(f"{path} is {kind}: pass a file or a pipe.")
    return stat.S_ISFIFO(mode)


def check_not_empty(path: Path) -> None:
    """Report a file that is missing or empty before it is read; reading it reports everything else.

    Raises:
        AudioError: there is no such file, or it has 0 bytes.
    """
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise _cannot_open(path, error) from None
    except (OSError, ValueError):
        return
    if stat.S_ISREG(status.st_mode) and not status.st_size:
        raise _empty(path)


def _check_readable(path: Path) -> None:
    """Report problems unrelated to audio, for which the decoders' own messages are cryptic."""
    try:
        with path.open("rb") as file:
            first_byte = file.read(1)
    except OSError as error:
        raise _cannot_open(path, error) from None
    if not first_byte:
        raise _empty(path)


def _empty(path: Path) -> AudioError:
    return AudioError(f"{path} is empty (0 bytes): re-copy it.")


def _cannot_open(path: Path, error: OSError) -> AudioError:
    if isinstance(error, FileNotFoundError):
        return AudioError(f"{path} does not exist: check the path.")
    if isinstance(error, PermissionError):
        return AudioError(f"{path} may not be read (permission denied): change its permissions.")
    return AudioError(f"{path} cannot be opened ({error.strerror}): check the path and the disk.")


def _chunks_of_pipe(path: Path) -> Iterator[bytes]:
    """The data of a pipe, until it ends or stops sending."""
    descriptor = _open_pipe(path)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        deadline = time.monotonic() + PIPE_SECONDS
        has_begun = False
        while time.monotonic() < deadline:
            events = poll.poll(100)
            chunk = os.read(descriptor, _CHUNK_BYTES) if events else b""
            if chunk:
                has_begun = True
                deadline = time.monotonic() + PIPE_SECONDS
                yield chunk
            elif events and (has_begun or any(event & select.POLLHUP for _, event in events)):
                return  # otherwise nobody has opened the other end of a FIFO yet
    finally:
        os.close(descriptor)
    raise AudioError(
        f"{path} is a pipe that sent nothing for {PIPE_SECONDS:.0f} s: check the command that writes to it."
    )


def _open_pipe(path: Path) -> int:
    """A descriptor to read from. Opening a FIFO waits for a writer, unless opened non-blocking."""
    own = re.fullmatch(r"/dev/(?:stdin|fd/(\d+))|/proc/self/fd/(\d+)", str(path))
    try:
        # A descriptor that is already open knows whether its writer is gone; a newly opened one would not.
        return os.dup(int(own[1] or own[2] or 0)) if own else os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise _cannot_open(path, error) from None
