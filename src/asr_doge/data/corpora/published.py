"""Published corpora: their addresses, licences and layouts.

Promises: an MD5 here is the publisher's (OpenSLR's md5sum.txt, LJ Speech's page); if none is known it is None, and
`asr-doge download --list` says so. Unpacked sizes are estimates, rounded up. It downloads nothing.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from asr_doge.data.corpora.base import NO_TRANSCRIPT, Archive, Corpus, Listed, Rejected, SourceUtterance
from asr_doge.data.corpora.layouts import kaldi_split, keyed_lines
from asr_doge.data.digits import FSDD_TEST_TAKES, FSDDRecording, list_fsdd
from asr_doge.data.text_files import NOT_UTF8, is_utf8, read_lines

_OPENSLR_MIRRORS = (
    "https://www.openslr.org",
    "https://openslr.trmal.net",
    "https://openslr.elda.org",
    "https://openslr.magicdatatech.com",
)


def _openslr(resource: str, unpacks_to: str, bytes_: int | None, md5: str | None, hours: float | None) -> Archive:
    """An archive of OpenSLR; its FLAC and WAV files take little more space than the archive."""
    name = unpacks_to.rpartition("/")[2]
    return Archive(
        urls=tuple(f"{mirror}/resources/{resource}/{name}.tar.gz" for mirror in _OPENSLR_MIRRORS),
        unpacks_to=unpacks_to,
        unpacked_bytes=int((bytes_ or 600_000_000) * 1.2),
        bytes=bytes_,
        md5=md5,
        hours=hours,
    )


# LibriSpeech and Mini LibriSpeech


def _librispeech_splits(root: Path) -> list[str]:
    return sorted({path.parents[2].name for path in root.glob("*/*/*/*.trans.txt")})


def _librispeech(root: Path, split: str) -> Iterator[Listed]:
    for transcripts in sorted((root / split).glob("*/*/*.trans.txt")):
        chapter = transcripts.parent
        texts = keyed_lines(transcripts)
        recorded = {path.stem for path in chapter.glob("*.flac")}
        for id_ in sorted(recorded | texts.keys()):
            text, path = texts.get(id_), chapter / f"{id_}.flac"
            if isinstance(text, Rejected):
                yield text
            elif text is None:
                yield Rejected(id_, NO_TRANSCRIPT, f"{path}: {transcripts.name} does not list it")
            else:
                yield SourceUtterance(id_, path, text, speaker=chapter.parent.name, language="en")


# LJ Speech: its authors name no splits, so chapters of the book are held out

_LJ_HELD_OUT = {"LJ049": "dev", "LJ050": "test"}


def _ljspeech_splits(root: Path) -> list[str]:
    return ["train", "dev", "test", "all"] if (root / "metadata.csv").is_file() else []


def _ljspeech(root: Path, split: str) -> Iterator[Listed]:
    metadata = root / "metadata.csv"
    texts = {line.partition("|")[0]: line for line in read_lines(metadata) if line} if metadata.is_file() else {}
    recorded = {path.stem for path in (root / "wavs").glob("*.wav")}
    for id_ in sorted(recorded | texts.keys()):
        if split not in ("all", _LJ_HELD_OUT.get(id_.partition("-")[0], "train")):
            continue
        line, path = texts.get(id_), root / "wavs" / f"{id_}.wav"
        if line is None:
            yield Rejected(id_, NO_TRANSCRIPT, f"{path}: metadata.csv does not list it")
        elif not is_utf8(line):
            yield Rejected(id_, NO_TRANSCRIPT, f"{metadata}: the line of {id_} is {NOT_UTF8}")
        else:
            # The last column spells out numbers and abbreviations.
            yield SourceUtterance(id_, path, line.split("|")[-1], speaker="LJ", language="en")


# The Free Spoken Digit Dataset

_FSDD_DEV_TAKES = {take + len(FSDD_TEST_TAKES) for take in FSDD_TEST_TAKES}


def _fsdd_splits(root: Path) -> list[str]:
    speakers = {recording.speaker for recording in list_fsdd(root)}
    if not speakers:
        return []
    a_speaker = min(speakers)
    forms = ["train-without-dev", f"train-without-{a_speaker}", f"test-of-{a_speaker}"]
    return ["train", "dev", "test", "all", *sorted(speakers), *forms]


def _fsdd(root: Path, split: str) -> list[Listed] | None:
    """A split is a set of recordings, minus sets (`-without-`) or intersected with sets (`-of-`), left to right."""
    recordings = list_fsdd(root)
    speakers = {recording.speaker for recording in recordings}
    first, *steps = re.split(r"-(without|of)-", split)
    if not {first, *steps[1::2]} <= {"train", "dev", "test", "all", *speakers}:
        return None

    def belongs(recording: FSDDRecording) -> bool:
        names = _fsdd_sets(recording)
        inside = first in names
        for operator, name in zip(steps[::2], steps[1::2], strict=True):
            inside = inside and ((name in names) == (operator == "of"))
        return inside

    return [
        SourceUtterance(
            id=recording.path.stem,
            audio_path=recording.path,
            raw_text=recording.word,
            speaker=recording.speaker,
            language="en",
        )
        for recording in recordings
        if belongs(recording)
    ]


def _fsdd_sets(recording: FSDDRecording) -> set[str]:
    """Names of the sets that a recording belongs to."""
    names = {"all", recording.speaker, "test" if recording.is_test else "train"}
    return names | {"dev"} if recording.take in _FSDD_DEV_TAKES else names


# speechocean762: Kaldi directories; its authors name no dev split, so a tenth of the training speakers are held out


def _speechocean_splits(root: Path) -> list[str]:
    return ["train", "dev", "test", "train-without-dev"] if (root / "train" / "wav.scp").is_file() else []


def _speechocean(root: Path, split: str) -> list[Listed] | None:
    listed = list(kaldi_split(root, split if split == "test" else "train") or ())
    listed = [replace(u, language="en") if isinstance(u, SourceUtterance) else u for u in listed]
    if split in ("train", "test"):
        return listed
    if split not in ("dev", "train-without-dev"):
        return None
    speakers = sorted({u.speaker for u in listed if isinstance(u, SourceUtterance) and u.speaker})
    held_out = set(speakers[9::10])
    return [u for u in listed if (isinstance(u, SourceUtterance) and u.speaker in held_out) == (split == "dev")]


PUBLISHED = {
    "librispeech": Corpus(
        layout="SPLIT/SPEAKER/CHAPTER/*.flac with *.trans.txt, as the archives unpack",
        default_splits=("train-clean-100", "dev-clean", "test-clean"),
        splits=_librispeech_splits,
        list_split=_librispeech,
        root="LibriSpeech",
        licence="CC BY 4.0",
        archives={
            name: _openslr("12", f"LibriSpeech/{name}", bytes_, md5, hours)
            for name, bytes_, md5, hours in [
                ("train-clean-100", 6_387_309_499, "2a93770f6d5c6c964bc36631d331a522", 100.6),
                ("train-clean-360", 23_049_477_885, "c0e676e450a7ff2f54aeade5171606fa", 363.6),
                ("train-other-500", 30_593_501_606, "d1a0fd59409feb2c614ce4d30c387708", 496.7),
                ("dev-clean", 337_926_286, "42e2234ba48799c1f50f24a7926300a1", 5.4),
                ("dev-other", 314_305_928, "c8d0bcc9cca99d4f8b62fcc847357931", 5.3),
                ("test-clean", 346_663_984, "32fa31d27d2e1cad72775fee3f4849a9", 5.4),
                ("test-other", 328_757_843, "fb5a50374b501bb3bac4815ee91d3135", 5.1),
            ]
        },
    ),
    "mini_librispeech": Corpus(
        layout="SPLIT/SPEAKER/CHAPTER/*.flac with *.trans.txt, as the archives unpack",
        default_splits=("train-clean-5", "dev-clean-2", ""),
        splits=_librispeech_splits,
        list_split=_librispeech,
        root="LibriSpeech",
        licence="CC BY 4.0",
        archives={
            "train-clean-5": _openslr(
                "31", "LibriSpeech/train-clean-5", 332_954_390, "5df7d4e78065366204ca6845bb08f490", 5
            ),
            "dev-clean-2": _openslr(
                "31", "LibriSpeech/dev-clean-2", 126_046_265, "6d7ab67ac6a1d2c993d050e16d61080d", 2
            ),
        },
    ),
    "ljspeech": Corpus(
        layout="metadata.csv and wavs/; splits: dev (chapter LJ049), test (chapter LJ050), train (the others), all",
        splits=_ljspeech_splits,
        list_split=_ljspeech,
        root="LJSpeech-1.1",
        licence="public domain",
        archives={
            "all": Archive(
                urls=("https://data.keithito.com/data/speech/LJSpeech-1.1.tar.bz2",),
                unpacks_to="LJSpeech-1.1",
                unpacked_bytes=4_000_000_000,
                bytes=2_748_572_632,
                md5="c4763be9595ddfa79c2fc6eaeb3b6c8e",
                hours=23.9,
            )
        },
    ),
    "fsdd": Corpus(
        layout=(
            "DIGIT_SPEAKER_TAKE.wav; splits: test (takes 0-4) and train (the others) by its authors' rule, dev (takes"
            " 5-9, a part of train), all, or a speaker's name; joined as in train-without-dev,"
            " train-without-lucas or test-of-lucas"
        ),
        default_splits=("train-without-dev", "dev", "test"),
        splits=_fsdd_splits,
        list_split=_fsdd,
        root="free-spoken-digit-dataset-1.0.10",
        licence="CC BY-SA 4.0",
        archives={
            "all": Archive(
                urls=("https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.tar.gz",),
                unpacks_to="free-spoken-digit-dataset-1.0.10",
                unpacked_bytes=50_000_000,
                bytes=None,  # GitHub may pack it again at any time, and guarantees neither size nor checksum
                md5=None,
                hours=None,
            )
        },
    ),
    "speechocean762": Corpus(
        layout=(
            "train/ and test/ with wav.scp, text and utt2spk, as the archive unpacks; splits: train, test, dev (every"
            " tenth speaker of train), train-without-dev"
        ),
        default_splits=("train-without-dev", "dev", "test"),
        splits=_speechocean_splits,
        list_split=_speechocean,
        root="speechocean762",
        licence="free for any purpose",
        archives={"all": _openslr("101", "speechocean762", None, None, None)},
    ),
}
"""Published corpora by their names on the command line."""
