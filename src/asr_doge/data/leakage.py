"""Find overlaps between training and evaluation data.

Promises: finds recordings with the same bytes, whatever their names; speakers in both; and ids that two splits share.
It reads few files completely: for files of equal size in both splits it compares 4 KB first. It does not recognize the
same speech in another format or cut.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from asr_doge.data.fingerprints import content_digest
from asr_doge.data.manifest import Utterance

_SHOWN = 6


def find_leaks(kept: Mapping[str, Sequence[Utterance]]) -> Iterator[str]:
    """One line for each kind of overlap between the utterances of `train` and those of another split."""
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
    """Ids of those of `others` whose recording is also in `train`."""
    others_sizes = {_size(utterance.audio_path) for utterance in others}
    alike: dict[tuple[int, bytes], list[Path]] = {}
    for utterance in train:
        if _size(utterance.audio_path) in others_sizes:
            alike.setdefault(_signature(utterance.audio_path), []).append(utterance.audio_path)

    @cache
    def contents(signature: tuple[int, bytes]) -> frozenset[str]:
        return frozenset(content_digest(path) for path in alike[signature])

    train_sizes = {size for size, _ in alike}
    same = set()
    for utterance in others:
        if _size(utterance.audio_path) in train_sizes:
            signature = _signature(utterance.audio_path)
            if signature in alike and content_digest(utterance.audio_path) in contents(signature):
                same.add(utterance.id)
    return same


def _size(path: Path) -> int:
    return path.stat().st_size


def _signature(path: Path) -> tuple[int, bytes]:
    """Size and 4 KB from the middle: recordings cut to the same length have the same size, and headers are alike."""
    size = _size(path)
    with path.open("rb") as file:
        file.seek(size // 2)
        return size, file.read(4096)


def _shared(names: set[str], noun: str, role: str) -> str:
    shown = ", ".join(sorted(names)[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")
    return f"{len(names):,} {noun if len(names) == 1 else noun + 's'} in both train and {role} ({shown})"
