"""What is trained on and judged by alike.

Promises: finds recordings of the same bytes, whatever their names; speakers; and ids that two splits share. It reads
the content of few files only: those whose size occurs in both splits. It does not recognize the same speech in another
format or cut.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from asr_doge.data.manifest import Utterance

_SHOWN = 6


def find_leaks(kept: Mapping[str, Sequence[Utterance]]) -> Iterator[str]:
    """One line for each kind of thing that `train` shares with another manifest.

    Args:
        kept: utterances by `train`, `dev` and `test`.
    """
    train = kept.get("train", ())
    for role, others in kept.items():
        if role == "train":
            continue
        recordings = _same_recordings(train, others)
        if recordings:
            yield f"{_shared(recordings, 'recording', role)}: results on {role} will look too good"
        ids = {u.id for u in train}.intersection(u.id for u in others).difference(recordings)
        if ids:
            yield f"{_shared(ids, 'id', role)}, for different recordings: give each an id of its own"
        speakers = {u.speaker for u in train if u.speaker}.intersection(u.speaker for u in others if u.speaker)
        if speakers:
            yield f"{_shared(speakers, 'speaker', role)}: {role} shows no new speakers"


def _same_recordings(train: Sequence[Utterance], others: Sequence[Utterance]) -> set[str]:
    """Ids of those of `others` whose recording is in `train` too."""
    paths_by_size: dict[int, list[Path]] = {}
    for utterance in train:
        paths_by_size.setdefault(_size(utterance.audio_path), []).append(utterance.audio_path)

    @cache
    def contents(size: int) -> frozenset[bytes]:
        return frozenset(_digest(path) for path in paths_by_size[size])

    same = set()
    for utterance in others:
        size = _size(utterance.audio_path)
        if size in paths_by_size and _digest(utterance.audio_path) in contents(size):
            same.add(utterance.id)
    return same


def _size(path: Path) -> int:
    return path.stat().st_size


def _digest(path: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()


def _shared(names: set[str], noun: str, role: str) -> str:
    shown = ", ".join(sorted(names)[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")
    return f"{len(names):,} {noun if len(names) == 1 else noun + 's'} in both train and {role} ({shown})"
