"""The `download` command: fetch published corpora into folders that `process` reads.

Promises: a corpus that is already there is left alone; disk space is checked before anything is fetched; one archive
that cannot be fetched does not stop the others. It knows no addresses itself: they are in the corpora's declarations.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from asr_doge.data.atomic_writing import check_writable, existing_part
from asr_doge.data.configuration import DownloadConfig
from asr_doge.data.corpora import PUBLISHED, Archive
from asr_doge.data.extraction import unpack
from asr_doge.data.hub_datasets import HUB_PREFIX, fetch_hub_split, hub_splits
from asr_doge.data.transfer import PART_SUFFIX, fetch
from asr_doge.errors import ConfigError, DataError


@dataclass(frozen=True)
class Download:
    """Result of fetching one split."""

    corpus: str
    split: str
    folder: Path
    """Its folder."""
    outcome: Literal["fetched", "already there", "failed"]
    error: str = ""
    """The error in one line, if it failed."""


def list_corpora() -> list[str]:
    """The archives that can be downloaded, one line for each archive, for a terminal."""
    rows = [("corpus", "split", "hours", "download", "unpacked", "MD5", "licence")]
    for name, corpus in PUBLISHED.items():
        for split, archive in corpus.archives.items():
            hours = "?" if archive.hours is None else f"{archive.hours:g}"
            size = "?" if archive.bytes is None else f"{archive.bytes / 1e9:.2f} GB"
            unpacked = f"< {max(archive.unpacked_bytes / 1e9, 0.1):.1f} GB"
            rows.append((name, split, hours, size, unpacked, archive.md5 or "not known", corpus.licence))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    addresses = {
        f"{name}: {corpus.archives[split].urls[0].rpartition('/')[0]}, {len(corpus.archives[split].urls)} addresses"
        for name, corpus in PUBLISHED.items()
        for split in corpus.archives
    }
    return [
        *table,
        "",
        *sorted(addresses),
        "",
        "Where no MD5 is known, damage is found by the archive's own checksum only. Also hub:NAME, any Hugging Face",
        "dataset with a column of audio (pip install 'asr-doge[datasets]').",
    ]


def download(config: DownloadConfig) -> Iterator[Download]:
    """Fetch and unpack what is missing; yields each split when it is done.

    Raises:
        ConfigError: an unknown corpus or split, or `datasets` is needed and not installed.
        DataError: the output folder cannot be written to, or the disk has too little space.
    """
    if not config.corpora:
        raise ConfigError(f"no corpus named: choose from {', '.join(PUBLISHED)}, or see asr-doge download --list")
    if config.splits and len(config.corpora) > 1:
        raise ConfigError("--splits goes with one corpus: run the command once for each")
    check_writable(config.output_dir)
    chosen = {name: _chosen(name, config) for name in config.corpora if not name.startswith(HUB_PREFIX)}
    missing = [
        archive
        for archives in chosen.values()
        for archive in archives.values()
        if not (config.output_dir / archive.unpacks_to).is_dir()
    ]
    _check_room(config, missing)
    config.output_dir.mkdir(parents=True, exist_ok=True)
    for name in config.corpora:
        if name.startswith(HUB_PREFIX):
            yield from _from_hub(name, config)
        for split, archive in chosen.get(name, {}).items():
            yield _fetched(name, split, archive, config)


def _chosen(name: str, config: DownloadConfig) -> dict[str, Archive]:
    """The archives of a corpus by split: the named ones, else those that `process` uses by default, else all."""
    if name not in PUBLISHED:
        raise ConfigError(f"corpus '{name}' is unknown: choose from {', '.join(PUBLISHED)}, or hub:NAME")
    archives = PUBLISHED[name].archives
    by_default = [split for split in PUBLISHED[name].default_splits if split in archives]
    splits: Sequence[str] = config.splits or by_default or list(archives)
    if unknown := [split for split in splits if split not in archives]:
        raise ConfigError(f"--splits {unknown[0]}: {name} has {', '.join(archives)}")
    return {split: archives[split] for split in splits}


def _check_room(config: DownloadConfig, missing: Sequence[Archive]) -> None:
    """Check the disk space. An archive is removed once unpacked, so only the largest counts beside the rest."""
    if not missing:
        return
    packed = [max(0, (a.bytes or a.unpacked_bytes) - _held(config.output_dir / a.name)) for a in missing]
    needed = sum(a.unpacked_bytes for a in missing) + (sum(packed) if config.keep_archives else max(packed))
    free = shutil.disk_usage(existing_part(config.output_dir)).free
    if needed > free:
        raise DataError(
            f"--output_dir {config.output_dir} has {free / 1e9:.1f} GB free, and {len(missing)} archives with what they"
            f" unpack to need {needed / 1e9:.1f} GB: free some, choose another folder, or fetch fewer --splits"
        )


def _held(archive: Path) -> int:
    """Bytes of an archive that are on the disk already."""
    paths = (archive, archive.with_name(archive.name + PART_SUFFIX))
    return max(path.stat().st_size if path.exists() else 0 for path in paths)


def _fetched(name: str, split: str, archive: Archive, config: DownloadConfig) -> Download:
    folder = config.output_dir / archive.unpacks_to
    if folder.is_dir():
        return Download(name, split, folder, "already there")
    packed = config.output_dir / archive.name
    urls = [f"{config.mirror.rstrip('/')}/{archive.name}"] if config.mirror else archive.urls
    try:
        fetch(urls, packed, archive.bytes, archive.md5, config.timeout)
        unpack(packed, config.output_dir, archive.unpacks_to)
    except DataError as error:
        return Download(name, split, folder, "failed", str(error))
    if not config.keep_archives:
        packed.unlink()
    return Download(name, split, folder, "fetched")


def _from_hub(name: str, config: DownloadConfig) -> Iterator[Download]:
    dataset = name.removeprefix(HUB_PREFIX)
    own_name = Path(dataset).name if Path(dataset).is_dir() else dataset.replace("/", "--")
    folder = config.output_dir / "--".join(filter(None, [own_name, config.subset]))
    for split in config.splits or hub_splits(dataset, config.subset):
        try:
            new = fetch_hub_split(dataset, split, folder, config)
        except DataError as error:
            yield Download(name, split, folder, "failed", str(error))
        else:
            yield Download(name, split, folder, "fetched" if new else "already there")
