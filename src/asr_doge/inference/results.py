"""Results of transcription: the text and, if requested, its segments and words with times.

Promises: times are seconds from the start of the recording, confidences are probabilities in [0, 1]; the texts of the
segments, joined by spaces, are the text. Plain data: importing this loads neither torch nor transformers.
"""

from dataclasses import dataclass
from pathlib import Path

from asr_doge.audio.sound import log_note
from asr_doge.errors import ASRDogeError


@dataclass(frozen=True)
class Word:
    """A word of a transcript: its start and end, and the probability that it is right."""

    text: str
    start: float
    end: float
    confidence: float | None = None


@dataclass(frozen=True)
class Alternative:
    """One of several hypotheses of a search.

    Attributes:
        text: of the hypothesis.
        score: higher is better; `asr_doge.decoding.decoders.Hypothesis` says what it is for each decoder.
    """

    text: str
    score: float


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording between two pauses or cuts.

    Attributes:
        text: its transcript.
        start, end: those of its first and last word if they were aligned; else of the speech that the voice activity
            detector found; else of the chunk.
        words: empty unless word times were requested.
        alternatives: best first; empty unless several hypotheses were requested.
    """

    text: str
    start: float
    end: float
    words: tuple[Word, ...] = ()
    alternatives: tuple[Alternative, ...] = ()


@dataclass(frozen=True)
class GuardAction:
    """A stretch on whose text a guard acted, and the guard: `silence`, `length` or `loop`."""

    guard: str
    start: float
    end: float


@dataclass(frozen=True)
class Transcription:
    """The transcript of one recording.

    Attributes:
        text: the transcript.
        duration: length of the recording, in seconds.
        path: the file, if it came from one.
        segments: the stretches with speech.
        guards: what the guards did.
        passes: number of language-model passes.
        channel: number of the channel that was read, from 1; None for the mean of all.
        notes: remarks of one line each, such as on a sound track that was not read, or that the model is unsure.
        incomplete: if the recording is truncated or damaged, the reason in one line: the text is that of the readable
            part.
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
    """A recording that could not be transcribed, and the reason in one line."""

    error: ASRDogeError
    path: Path | None = None


Result = Transcription | FailedTranscription


def successful(result: Transcription | FailedTranscription) -> Transcription:
    """The result, if the recording could be read; else its error is raised. Notes go to the log."""
    if isinstance(result, FailedTranscription):
        raise result.error
    for line in (*result.notes, *([result.incomplete] if result.incomplete else [])):
        log_note(line)
    return result
