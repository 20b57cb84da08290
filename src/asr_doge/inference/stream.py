"""Transcribe speech while it arrives: from a microphone, a pipe, or a file.

Promises: committed words are never taken back before their segment ends; until then words are only added. A segment
ends at a pause and is then transcribed like the same stretch of a file that is cut at pauses, so the finished
transcript equals that of the file with `cut_at_pauses`. A word is committed when two successive hypotheses agree on it
and on all words before it.
The work per second of audio is bounded: only the open segment is transcribed again, and less often as it grows.
It does not record or print (see the command line), and uses no clock: the audio received determines when a hypothesis
is computed. If the model is slower than the speaker, the caller passes all audio that arrived meanwhile at once.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from asr_doge.audio.arrays import prepare_waveform
from asr_doge.audio.resampling import SAMPLE_RATE, checked_rate, resample_blocks
from asr_doge.errors import AudioError
from asr_doge.inference.chunking import Chunk, Chunker
from asr_doge.inference.recordings import guard_actions, transcript_of
from asr_doge.inference.results import GuardAction, Segment, Transcription
from asr_doge.inference.stitching import ChunkTranscript, common_prefix_length, stitch
from asr_doge.inference.transcription import RecordingTranscriber

HOP_SECONDS = 0.32
"""Least audio between two hypotheses, in seconds."""
MOST_WORK = 16
"""Seconds of audio that hypotheses may transcribe per second of new audio, at most."""


@dataclass(frozen=True)
class StreamUpdate:
    """A change of a stream.

    Attributes:
        seconds: audio received so far.
        finished: segments that ended, whose text will not change any more.
        committed: words of the open segment on which two successive hypotheses agreed.
        tentative: the further words of the latest hypothesis; they may change.
    """

    seconds: float
    finished: tuple[Segment, ...]
    committed: str
    tentative: str


class StreamTranscriber:
    """Transcribes one stream.

    Args:
        transcriber: the model, from `asr_doge.load`; it may serve several streams in turn.
    """

    def __init__(self, transcriber: RecordingTranscriber) -> None:
        self._transcriber = transcriber
        self._chunker: Chunker | None = None  # of what is fed
        self._samples = 0
        self._ended: list[Chunk] = []  # not transcribed yet
        self._finished: list[Segment] = []
        self._reported = 0  # number of finished segments that an update has held
        self._joined: list[ChunkTranscript] = []  # ended, but joining the overlapping next chunk may change the last
        self._guards: list[GuardAction] = []
        self._passes = 0
        self._hypothesis: list[str] = []
        self._committed: list[str] = []
        self._hypothesis_seconds = 0.0  # seconds of audio at the latest hypothesis

    @property
    def seconds(self) -> float:
        """Audio received so far."""
        return self._samples / SAMPLE_RATE

    def feed(self, samples: ArrayLike, hypothesis: bool = True) -> StreamUpdate | None:
        """Take more samples at 16 kHz, of any number; returns what changed, if anything did.

        Args:
            samples: `[samples]`, `[samples, channels]` or `[channels, samples]` (their mean is taken); floats in
                [-1, 1], or integers of 8, 16 or 32 bits.
            hypothesis: whether to transcribe the open segment; if not, only segments that end are transcribed.

        Raises:
            AudioError: `samples` are not samples; the stream may continue.
        """
        samples = _mono(samples)
        self._samples += len(samples)
        if self._chunker is None:
            self._chunker = Chunker(self._transcriber.max_seconds)
        self._end_segments(self._chunker.feed(samples))
        chunk = self._chunker.open_chunk
        before = (self._committed, self._hypothesis)
        hop = max(HOP_SECONDS, (chunk.end - chunk.start) / MOST_WORK)
        if hypothesis and self.seconds - self._hypothesis_seconds >= hop:
            self._hypothesis_seconds = self.seconds
            self._update_hypothesis(chunk)
        if self._reported == len(self._finished) and before == (self._committed, self._hypothesis):
            return None
        return self._update()

    def feed_chunk(self, samples: int, chunk: Chunk | None) -> StreamUpdate | None:
        """Instead of `feed`, take a chunk that was cut elsewhere; returns what changed, if anything did.

        Args:
            samples: number of samples of the stream so far.
            chunk: the chunk that they complete, if any.
        """
        self._samples = samples
        self._end_segments([chunk] if chunk is not None else [])
        return self._update() if self._reported < len(self._finished) else None

    def finish(self) -> StreamUpdate:
        """End the stream: finishes all segments, also those that an interrupt of `feed` left undone."""
        self._end_segments(self._chunker.finish() if self._chunker is not None else [])
        self._release()
        return self._update()

    def transcription(self) -> Transcription:
        """All finished segments; `passes` counts the passes for these, as for a file."""
        text = " ".join(segment.text for segment in self._finished)
        return Transcription(
            text, self.seconds, segments=tuple(self._finished), guards=tuple(self._guards), passes=self._passes
        )

    def _end_segments(self, chunks: list[Chunk]) -> None:
        """Transcribe chunks that have ended."""
        self._ended += chunks
        while self._ended:
            chunk = self._ended[0]
            recognitions = [] if chunk.is_gap else self._transcriber.recognize_chunks([chunk])
            del self._ended[0]  # only now, so that `finish` transcribes it if an interrupt came before
            for recognition in recognitions:
                self._joined.append(transcript_of(recognition, chunk))
                self._guards += guard_actions(recognition, chunk)
                self._passes += recognition.passes
            if chunk.is_gap or not chunk.overlap_after:
                self._release()

    def _release(self) -> None:
        """Move segments that ended to the finished ones."""
        self._finished += stitch(self._joined)
        self._joined, self._hypothesis, self._committed = [], [], []

    def _update_hypothesis(self, chunk: Chunk) -> None:
        """Compute a hypothesis for the open chunk, and commit the words it shares with the previous one."""
        transcripts = list(self._joined)
        if chunk.speech is not None:
            recognition = self._transcriber.recognize_open(chunk)
            if recognition is None:
                return
            transcripts.append(transcript_of(recognition, chunk))
        words = " ".join(segment.text for segment in stitch(transcripts)).split()
        agreed = words[: common_prefix_length(words, self._hypothesis)]
        if common_prefix_length(agreed, self._committed) == len(self._committed):
            self._committed = agreed
        self._hypothesis = words

    def _update(self) -> StreamUpdate:
        finished = tuple(self._finished[self._reported :])
        self._reported = len(self._finished)
        tentative = self._hypothesis[len(self._committed) :]
        return StreamUpdate(self.seconds, finished, " ".join(self._committed), " ".join(tentative))


def stream(
    blocks: Iterable[ArrayLike], transcriber: RecordingTranscriber, sampling_rate: float | None = None
) -> Iterator[StreamUpdate]:
    """Transcribe blocks of samples as they arrive, until they end.

    Args:
        blocks: each as `StreamTranscriber.feed` takes it.
        transcriber: the model.
        sampling_rate: of the samples, in Hz; default, 16 kHz. Resampling from another delays them by a second or two.

    Raises:
        AudioError: a block does not hold samples.
    """
    live = StreamTranscriber(transcriber)
    given: Any = blocks
    heard: Iterable[NDArray[np.float32]] = map(_mono, [given] if getattr(given, "ndim", 0) == 1 else given)
    if sampling_rate is not None:
        heard = resample_blocks(heard, checked_rate(sampling_rate), SAMPLE_RATE)
    for block in heard:
        update = live.feed(block)
        if update is not None:
            yield update
    yield live.finish()


def _mono(samples: Any) -> NDArray[np.float32]:
    """A block as `[samples]`, which may be empty."""
    if isinstance(samples, str | bytes | bytearray | os.PathLike):
        kind = "bytes" if isinstance(samples, bytes | bytearray) else "a name"
        raise AudioError(
            f"a stream takes blocks of samples, not {kind}: for 16-bit samples pass np.frombuffer(block, np.int16), for"
            " a file asr_doge.audio.read_blocks(path)"
        )
    if 0 in getattr(samples, "shape", ()) or (isinstance(samples, list | tuple) and not samples):
        return np.zeros(0, dtype=np.float32)
    return prepare_waveform(samples, SAMPLE_RATE, SAMPLE_RATE, "a block of the stream")
