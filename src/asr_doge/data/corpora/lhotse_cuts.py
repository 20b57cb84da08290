"""Lhotse's cuts and Shar folders, read as a corpus; and manifests, written as cuts.

Promises: a cut of a whole file is used where it lies; the audio of any other cut (a part of a recording, one of
several channels, a mix, or one in a Shar folder) is what lhotse loads for it, written once as 16-bit FLAC. A cut that
cannot be used is rejected with the reason, and the others are read. It needs the `lhotse` extra.
It normalizes no text.
"""

import gzip
import io
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import soundfile

from asr_doge.data.atomic_writing import write_atomically
from asr_doge.data.corpora.base import (
    MALFORMED,
    MISSING_AUDIO,
    NO_TRANSCRIPT,
    Corpus,
    Listed,
    Rejected,
    SourceUtterance,
)
from asr_doge.data.manifest import Utterance
from asr_doge.data.text_files import NOT_UTF8, is_utf8, read_lines
from asr_doge.errors import ConfigError, DataError, first_line
from asr_doge.progress import progress_bar

_ENDINGS = (".jsonl.gz", ".jsonl")
_SAME_SECONDS = 1e-3
"""Difference of two durations that is rounding."""


def lhotse_corpus(clips: Path) -> Corpus:
    """Cuts and Shar folders as a corpus; audio that is no file of its own is written to `clips`."""
    return Corpus(
        layout="lhotse's SPLIT.jsonl.gz, cuts_SPLIT.jsonl.gz or NAME_cuts_SPLIT.jsonl.gz, or a Shar folder SPLIT",
        splits=_cut_splits,
        list_split=lambda folder, split: _list_cuts(folder, split, clips / split.replace("/", "-")),
    )


def _list_cuts(folder: Path, split: str, clips: Path) -> Iterator[Listed] | None:
    """The utterances of a split: `SPLIT.jsonl.gz`, `*cuts_SPLIT.jsonl.gz`, or the Shar folder `SPLIT`.

    Args:
        folder: of the corpus.
        split: its name; `.` for a Shar folder that is the corpus's own.
        clips: the folder for the split's audio.

    Raises:
        ConfigError: the `lhotse` extra is not installed.
        DataError: a list of cuts cannot be read.
    """
    shar = folder / split
    if _is_shar(shar):
        cuts = _cuts_of_shar(shar)
    elif (path := _cuts_file(folder, split)) is not None:
        cuts = _cuts_of_lines(path)
    else:
        return None
    lhotse_library()
    return (
        cut if isinstance(cut, Rejected) else _utterance(cut, folder, clips / f"{number:08d}.flac")
        for number, cut in enumerate(progress_bar(cuts, desc=f"cuts of {split}", unit="cut"))
    )


def _cut_splits(folder: Path) -> list[str]:
    """Splits that a folder holds."""
    files = [path.name.removesuffix(ending) for ending in _ENDINGS for path in folder.glob(f"*{ending}")]
    names = {name.rpartition("cuts_")[2] for name in files if not name.startswith("cuts.")}
    return sorted([*names, *(path.name for path in folder.iterdir() if _is_shar(path)), *["."] * _is_shar(folder)])


def _is_shar(folder: Path) -> bool:
    return any(folder.glob("cuts.*.jsonl.gz"))


def _cuts_file(folder: Path, split: str) -> Path | None:
    names = (f"{before}{split}{ending}" for before in ("", "cuts_") for ending in _ENDINGS)
    prefixed = (path for ending in _ENDINGS for path in sorted(folder.glob(f"*_cuts_{split}{ending}")))
    return next((path for path in (*(folder / name for name in names), *prefixed) if path.is_file()), None)


def _cuts_of_lines(path: Path) -> Iterator[Any]:
    """The cuts of a file, a line each, and a `Rejected` for a line that holds none."""
    lhotse = lhotse_library()
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            if not is_utf8(line):
                raise ValueError(NOT_UTF8)
            cut = lhotse.serialization.deserialize_item(json.loads(line))
            if not isinstance(cut, lhotse.cut.Cut):
                raise ValueError(f"a {type(cut).__name__}, not a cut; make cuts with 'lhotse cut simple'")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            yield Rejected(where, MALFORMED, f"{where}: not a cut of lhotse ({first_line(error)})")
        else:
            yield cut


def _cuts_of_shar(folder: Path) -> Iterator[Any]:
    """The cuts of a Shar folder, each with its audio in memory."""
    try:
        yield from lhotse_library().CutSet.from_shar(in_dir=str(folder))
    except Exception as error:  # of tarfile, gzip, JSON or lhotse, by what is damaged
        raise DataError(f"{folder} cannot be read as lhotse Shar ({first_line(error)}): make it again") from error


def _utterance(cut: Any, folder: Path, clip: Path) -> Listed:
    """The utterance of a cut; audio that is no file of its own is written to `clip`."""
    spoken = sorted(getattr(cut, "supervisions", []), key=lambda supervision: supervision.start)
    text = " ".join(_raw_text(supervision) for supervision in spoken if _raw_text(supervision))
    if not text:
        return Rejected(cut.id, NO_TRANSCRIPT, f"cut {cut.id} of {folder} has no supervision with text")
    try:
        path = _whole_file(cut, folder) or _written(cut, clip)
    except DataError:
        raise
    except Exception as error:  # what lhotse's decoders raise differs from one to the next
        return Rejected(cut.id, MISSING_AUDIO, f"cut {cut.id} of {folder} cannot be loaded ({first_line(error)})")
    speakers, languages = ({getattr(one, name) for one in spoken} for name in ("speaker", "language"))
    return SourceUtterance(
        cut.id, path, text, *(each.pop() if len(each) == 1 else None for each in (speakers, languages))
    )


def _raw_text(supervision: Any) -> str:
    """The transcript; if known, as it was before `process` normalized it."""
    return str((supervision.custom or {}).get("raw_text") or supervision.text or "").strip()


def _whole_file(cut: Any, folder: Path) -> Path | None:
    """The file of a cut that is all of it."""
    recording = getattr(cut, "recording", None)
    if type(cut).__name__ != "MonoCut" or recording is None or recording.transforms:
        return None
    (source, *others), channels = recording.sources, recording.channel_ids
    if others or source.type != "file" or len(channels) != 1:
        return None
    if cut.start or abs(cut.duration - recording.duration) > _SAME_SECONDS:
        return None
    beside = folder / source.source
    return beside if beside.is_file() else Path(source.source)


def _written(cut: Any, clip: Path) -> Path:
    """The audio of a cut as a file, which stays as it is if it holds just that already."""
    file = io.BytesIO()
    soundfile.write(file, cut.load_audio().T, cut.sampling_rate, format="FLAC", subtype="PCM_16")
    if not clip.exists() or clip.read_bytes() != file.getvalue():
        write_atomically(clip, file.getvalue())
    return clip


def write_cuts(path: Path, utterances: Sequence[Utterance], num_threads: int = 8) -> list[str]:
    """Write utterances as lhotse cuts (`.jsonl.gz`), one of a whole recording each; paths are absolute.

    The supervision's text is the normalized one; `custom` has the corpus's as `raw_text`.

    Returns:
        A line for each recording that lhotse cannot read, which is left out.

    Raises:
        ConfigError: the `lhotse` extra is not installed.
        DataError: the file cannot be written.
    """
    lhotse = lhotse_library()

    def cut_of(utterance: Utterance) -> Any:
        try:
            recording = lhotse.Recording.from_file(utterance.audio_path, recording_id=utterance.id)
        except Exception as error:  # as above
            return f"{utterance.audio_path} cannot be read by lhotse ({first_line(error)})"
        supervision = lhotse.SupervisionSegment(
            id=utterance.id,
            recording_id=utterance.id,
            start=0.0,
            duration=recording.duration,
            channel=recording.channel_ids if recording.num_channels > 1 else recording.channel_ids[0],
            text=utterance.text,
            language=utterance.language,
            speaker=utterance.speaker,
            custom={"raw_text": utterance.raw_text},
        )
        cut = recording.to_cut()
        cut.id, cut.supervisions = utterance.id, [supervision]
        return cut

    with ThreadPoolExecutor(num_threads) as threads:
        results = list(progress_bar(threads.map(cut_of, utterances), desc=path.name, total=len(utterances), unit="cut"))
    lines = [json.dumps(cut.to_dict(), ensure_ascii=False) for cut in results if not isinstance(cut, str)]
    content = "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")
    write_atomically(path, gzip.compress(content, mtime=0))
    return [result for result in results if isinstance(result, str)]


def lhotse_library() -> Any:
    """Lhotse itself.

    Raises:
        ConfigError: the `lhotse` extra is not installed.
    """
    try:
        import lhotse
    except ImportError:
        raise ConfigError("lhotse's cuts need lhotse: pip install 'asr-doge[lhotse]'") from None
    return lhotse
