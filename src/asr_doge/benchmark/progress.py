"""Store the transcripts of a benchmark, so that an interrupted one can continue.

Promises: a run reuses an earlier run's transcript if it would be the same: the same recognizer with the same settings,
and a recording that has not changed since. Each transcript is on disk as soon as it is ready, and a truncated line is
skipped.
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
        stamp: of its recording, with the language that was used.
        text: the transcript.
        duration: seconds of the recording.
        seconds: time it took; in a batch, the first has the time of all.
        incomplete: why the recording is not whole, if it is truncated or corrupt.
    """

    stamp: str
    text: str
    duration: float
    seconds: float
    incomplete: str | None = None


class Progress:
    """The finished transcripts of one recognizer.

    Args:
        folder: the folder of the reports.
        recogniser: everything that the transcripts depend on besides the recordings.
        part: the part of the samples that this process measures, so that processes do not share a file.
    """

    def __init__(self, folder: Path, recogniser: str, part: str) -> None:
        digest = hashlib.sha256(f"{recogniser}\n{part}".encode("utf-8", "backslashreplace")).hexdigest()[:16]
        self.path = folder / f".unfinished_{digest}.jsonl"
        self._finished = self._read()

    def finished(self, sample: Utterance) -> Finished | None:
        """The transcript of an utterance, if there is one and its recording has not changed."""
        known = self._finished.get(sample.id)
        if known is None:
            return None
        try:
            return known if known.stamp == _stamp(sample) else None
        except DataError:  # it is gone; this is reported when it is read
            return None

    def add(self, sample: Utterance, outcome: Transcription, seconds: float) -> Finished:
        """Store a transcript, and the time it took.

        Raises:
            DataError: the folder cannot be written to, or the recording is gone.
        """
        finished = Finished(_stamp(sample), outcome.text, outcome.duration, seconds, outcome.incomplete)
        # It starts with a line break too, since the previous line may be truncated.
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
        """Delete them: their report is written."""
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
            except (ValueError, TypeError, KeyError, AttributeError):  # truncated when the process was killed
                continue
        return found


def _stamp(sample: Utterance) -> str:
    return f"{audio_stamp(sample.audio_path)} {sample.language or ''}"
