"""Recordings in progress: what was read of them, and their transcripts as their chunks are recognized.

Promises: times of a transcript count from the recording's start, and the chunks' texts are joined in their order,
whatever order they were recognized in. A recording may be read in one thread and recognized in another: the reader sets
`is_read` last.
It does not read, cut or recognize.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from asr_doge.decoding.recognition import Recognition
from asr_doge.errors import AudioError, DamagedAudioError, in_one_line
from asr_doge.inference.chunking import Chunk
from asr_doge.inference.results import (
    Alternative,
    FailedTranscription,
    GuardAction,
    Segment,
    Transcription,
    Word,
)
from asr_doge.inference.stitching import ChunkTranscript, stitch

FEWEST_LABELS = 12
"""Labels that must have been recognized before anything is said of how sure they are: two or three words."""


@dataclass
class Recording:
    """A recording in progress: how much of it was read, and the recognition of each of its chunks."""

    path: Path | None
    name: str
    language: str | None = None
    channel: int | None = None
    samples: int = 0
    chunks: int = 0
    transcripts: dict[int, ChunkTranscript] = field(default_factory=dict)
    guards: list[GuardAction] = field(default_factory=list)
    passes: int = 0
    is_read: bool = False
    error: AudioError | None = None
    notes: list[str] = field(default_factory=list)
    incomplete: str | None = None
    label_probabilities: list[float] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        """Whether all of it was read and recognized, or cannot be."""
        return self.is_read and (self.error is not None or len(self.transcripts) == self.chunks)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """While it is read: of a damaged recording, the readable part is transcribed all the same."""
        try:
            yield
        except DamagedAudioError as error:
            if not self.samples:
                raise
            self.incomplete = str(error)

    def add(self, index: int, chunk: Chunk, recognition: Recognition) -> None:
        """Note what was recognized in one of its chunks."""
        self.transcripts[index] = transcript_of(recognition, chunk)
        self.guards += guard_actions(recognition, chunk)
        self.passes += recognition.passes
        self.label_probabilities += recognition.label_probabilities

    def finished(self, sampling_rate: int, unsure_below: float | None = None) -> Transcription | FailedTranscription:
        """Its transcript, or why there is none.

        Args:
            sampling_rate: in Hz.
            unsure_below: as in `ASRDogeConfig`.
        """
        if self.error is not None:
            return FailedTranscription(self.error, self.path)
        segments = stitch([self.transcripts[index] for index in range(self.chunks)])
        text = " ".join(segment.text for segment in segments)
        guards = tuple(sorted(self.guards, key=lambda action: action.start))
        return Transcription(
            text,
            self.samples / sampling_rate,
            self.path,
            tuple(segments),
            guards,
            self.passes,
            self.channel + 1 if self.channel is not None else None,
            (*self.notes, *self._unsure(unsure_below)),
            self.incomplete,
        )

    def _unsure(self, unsure_below: float | None) -> list[str]:
        """A note, if the CTC head is unsure of most of what it recognized."""
        if unsure_below is None or len(self.label_probabilities) < FEWEST_LABELS:
            return []
        mean = fmean(self.label_probabilities)
        if mean >= unsure_below:
            return []
        return [
            f"{in_one_line(self.name)}: the model is unsure of most of it (mean label probability {mean:.2f}, usually"
            f" above {unsure_below}): another language than it knows, or mostly noise?"
        ]


QueuedChunk = tuple[Recording, int, Chunk]
"""A chunk that waits to be transcribed, with its recording and its number there."""


def num_samples(queued: QueuedChunk) -> int:
    """Length of the chunk."""
    return len(queued[2].samples)


def segment_of(recognition: Recognition, chunk: Chunk) -> Segment:
    """The segment for a recognized chunk, with times from the recording's start."""
    bounds = recognition.word_bounds
    if bounds is None and chunk.is_uncut and recognition.times:  # rather than the detector, which takes longer
        bounds = recognition.times[0][0], recognition.times[-1][1]
    if bounds is not None:
        start, end = (min(chunk.start + moment, chunk.end) for moment in bounds)
    else:
        start, end = chunk.speech_bounds() if recognition.text else (chunk.start, chunk.end)
    words = tuple(
        Word(word.text, chunk.start + word.start, min(chunk.start + word.end, chunk.end), word.confidence)
        for word in recognition.words
    )
    alternatives = tuple(Alternative(text, score) for text, score in recognition.alternatives)
    return Segment(recognition.text, start, end, words, alternatives)


def transcript_of(recognition: Recognition, chunk: Chunk) -> ChunkTranscript:
    """The transcript of a recognized chunk, ready to be joined with its neighbours'."""
    times = tuple((chunk.start + start, min(chunk.start + end, chunk.end)) for start, end in recognition.times)
    return ChunkTranscript(segment_of(recognition, chunk), times, chunk.overlap)


def guard_actions(recognition: Recognition, chunk: Chunk) -> list[GuardAction]:
    """The actions of the guards on a chunk, with times in the recording."""
    silenced = [
        GuardAction("silence", chunk.start + start, min(chunk.start + end, chunk.end))
        for start, end in recognition.silenced
    ]
    return [*silenced, *(GuardAction(guard, chunk.start, chunk.end) for guard in recognition.guards)]
