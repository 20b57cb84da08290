"""What transcription gives: text, and, where they were asked for, its stretches and words with times.

Promises: times are seconds from the start of the recording, confidences are probabilities in [0, 1]; the texts of the
segments, joined by spaces, are the text. Plain data: importing this loads neither torch nor transformers.
"""

from dataclasses import dataclass
from pathlib import Path

from asr_doge.errors import ASRDogeError


@dataclass(frozen=True)
class Word:
    """A word of a transcript: when it was said, and how sure the model is of it."""

    text: str
    start: float
    end: float
    confidence: float | None = None


@dataclass(frozen=True)
class Alternative:
    """One of several texts that beam search found, and the natural logarithm of its probability."""

    text: str
    score: float


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording between two pauses or cuts.

    Attributes:
        text: what was said.
        start, end: from its first word to its last where times were asked for and the model has them; else the cuts.
        words: empty unless word times were asked for.
        alternatives: the best first; empty unless several texts were asked for.
    """

    text: str
    start: float
    end: float
    words: tuple[Word, ...] = ()
    alternatives: tuple[Alternative, ...] = ()


@dataclass(frozen=True)
class GuardAction:
    """A stretch on whose text a guard acted, and which: `silence`, `length` or `loop`."""

    guard: str
    start: float
    end: float


@dataclass(frozen=True)
class Transcription:
    """What was said in one recording.

    Attributes:
        text: the transcript.
        duration: length of the recording, in seconds.
        path: the file, if it came from one.
        segments: the stretches in which something was said.
        guards: what the guards did.
        passes: times the language model ran for it.
        channel: number of the channel that was read, from 1; None for the mean of all.
        notes: what a listener would wonder about, such as a sound track that was not read, a line each.
        incomplete: why the recording is not whole, in one line, if it is truncated or corrupt: the text is that of what
            is there.
    """

    text: str
    duration: float
    path: Path | None = None
    segments: tuple[Segment, ...] = ()
    guards: tuple[GuardAction, ...] = ()
    passes: int = 0
    channel: int | None = None
    notes: tuple[str, ...] = ()
    incomplete: str | None = None


@dataclass(frozen=True)
class FailedTranscription:
    """A recording that could not be transcribed, and why, in one line."""

    error: ASRDogeError
    path: Path | None = None
