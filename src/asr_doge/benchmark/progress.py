"""Transcripts of a benchmark that was interrupted, so that it can go on.

Promises: what one run has finished the next one need not do again, if it would give the same: the same recogniser with
the same settings, and a recording that has not changed since. Each transcript is on disk as soon as it is there, and a
line that was cut off is passed over.
It does not score.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from asr_doge.data.fingerprints import audio_stamp
from asr_doge.data.manifest import Utterance
from asr_doge.errors import DataError
from asr_doge.inference.results import Transcription


@dataclass(frozen=True)
class Finished:
    """One transcript.

    Attributes:
        stamp: of the recording it is of, and the language it was taken for.
        text: the transcript.
        duration: seconds of the recording.
        seconds: how long it took; of several in a batch, the first bears it all.
        incomplete: why the recording is not whole, if it is truncated or corrupt.
    """

    stamp: str
    text: str
    duration: float
    seconds: float
    incomplete: str | None = None


class Progress:
    """The finished transcripts of one recogniser.

    Args:
        folder: where reports go.
        recogniser: all that the transcripts depend on besides the recordings.
        part: which part of the samples this process measures, so that processes do not share a file.
    """

    def __init__(self, folder: Path, recogniser: str, part: str) -> None:
        digest = hashlib.sha256(f"{recogniser}\n{part}".encode("utf-8", "backslashreplace")).hexdigest()[:16]
        self.path = folder / f".unfinished_{digest}.jsonl"
        self._finished = self._read()

    def finished(self, sample: Utterance) -> Finished | None:
        """The transcript of an utterance, if there is one and its recording is still the same."""
        known = self._finished.get(sample.id)
        if known is None:
            return None
        try:
            return known if known.stamp == _stamp(sample) else None
        except DataError:  # it has gone since; whoever reads it will say so
            return None

    def add(self, sample: Utterance, outcome: Transcription, seconds: float) -> Finished:
        """Keep a transcript, and how long it took.

        Raises:
            DataError: the folder cannot be written to, or the recording has gone meanwhile.
        """
        finished = Finished(_stamp(sample), outcome.text, outcome.duration, seconds, outcome.incomplete)
        # Its own line break comes first, too: before it may stand a line that was cut off.
        line = f"\n{json.dumps({'id': sample.id} | asdict(finished))}\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise DataError(f"{self.path} cannot be written ({error.strerror}): choose another --output_dir") from error
        self._finished[sample.id] = finished
        return finished

    def remove(self) -> None:
        """Forget them: their report is written."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> dict[str, Finished]:
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return {}
        found = {}
        for line in lines:
            try:
                entry = json.loads(line)
                sample_id = entry.pop("id")
                found[sample_id] = Finished(**entry)
            except (ValueError, TypeError, KeyError, AttributeError):  # cut off when the process was killed
                continue
        return found


def _stamp(sample: Utterance) -> str:
    return f"{audio_stamp(sample.audio_path)} {sample.language or ''}"
