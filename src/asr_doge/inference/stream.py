"""Transcribe speech while it comes in: from a microphone, a pipe, or a file read at its own pace.

Promises: words that are committed are never taken back before their segment ends, and until then only more are added;
a segment ends where somebody pauses, and is then transcribed as the same stretch of a file is, so that the finished
transcript is the file's. A word is committed when two hypotheses in a row agree on it and on all before it. The work
for a second of audio is bounded: only the segment that is still open is transcribed again, and the longer it is, the
more rarely.
It does not record or print (see the command line), and looks at no clock: how often a hypothesis is made depends on
the audio, and if the model is slower than the speaker, whatever has come meanwhile is fed at once.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asr_doge.audio.resampling import SAMPLE_RATE
from asr_doge.inference.results import GuardAction, Segment, Transcription
from asr_doge.inference.segmentation import Piece, Segmenter, common_prefix, stitch
from asr_doge.inference.transcription import RecordingTranscriber, guard_actions, segment_of

HOP_SECONDS = 0.32
"""Audio between two hypotheses, at least."""
MOST_WORK = 16
"""Seconds of audio transcribed for a hypothesis per second of new audio, at most."""


@dataclass(frozen=True)
class StreamUpdate:
    """What changed.

    Attributes:
        seconds: audio heard so far.
        finished: segments that ended, whose text will not change any more.
        committed: words of the open segment on which two hypotheses agreed.
        tentative: what the latest hypothesis holds beyond them; it may change.
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
        self._segmenter = Segmenter(transcriber.max_seconds)
        self._samples = 0
        self._ended: list[Piece] = []  # to be transcribed for good
        self._finished: list[Segment] = []
        self._told = 0  # of the finished, those that an update has held
        self._joined: list[Segment] = []  # ended too, but the next overlaps their last and may mend its end
        self._guards: list[GuardAction] = []
        self._passes = 0
        self._hypothesis: list[str] = []
        self._committed: list[str] = []
        self._looked_at = 0.0  # seconds of audio at the latest hypothesis

    @property
    def seconds(self) -> float:
        """Audio heard so far."""
        return self._samples / SAMPLE_RATE

    def feed(self, samples: NDArray[np.float32], hypothesis: bool = True) -> StreamUpdate | None:
        """Take more audio; returns what changed, if anything did.

        Args:
            samples: `[samples]`, mono at 16 kHz, of any number.
            hypothesis: whether to say what is heard of the segment that is open; without, only whole ones are written.
        """
        self._samples += len(samples)
        self._end_segments(self._segmenter.feed(samples))
        piece = self._segmenter.open_piece
        before = (self._committed, self._hypothesis)
        if hypothesis and self.seconds - self._looked_at >= max(HOP_SECONDS, (piece.end - piece.start) / MOST_WORK):
            self._looked_at = self.seconds
            self._look_at(piece)
        if self._told == len(self._finished) and before == (self._committed, self._hypothesis):
            return None
        return self._update()

    def finish(self) -> StreamUpdate:
        """The stream has ended: all that was said is finished, also what an interrupt of `feed` left undone."""
        self._end_segments(self._segmenter.finish())
        self._release()
        return self._update()

    def transcription(self) -> Transcription:
        """All segments that are finished; passes are those that it takes to write them, as for a file."""
        text = " ".join(segment.text for segment in self._finished)
        return Transcription(
            text, self.seconds, segments=tuple(self._finished), guards=tuple(self._guards), passes=self._passes
        )

    def _end_segments(self, pieces: list[Piece]) -> None:
        """Transcribe pieces for good."""
        self._ended += pieces
        while self._ended:
            piece = self._ended[0]
            recognitions = [] if piece.is_gap else self._transcriber.recognize_pieces([piece])
            del self._ended[0]  # only now: an interrupt may have come, and `finish` shall make good for it
            for recognition in recognitions:
                self._joined.append(segment_of(recognition, piece))
                self._guards += guard_actions(recognition, piece)
                self._passes += recognition.passes
            if piece.is_gap or not piece.overlaps_next:
                self._release()

    def _release(self) -> None:
        """Finish what has ended."""
        self._finished += stitch(self._joined, [True] * len(self._joined))
        self._joined, self._hypothesis, self._committed = [], [], []

    def _look_at(self, piece: Piece) -> None:
        """Make a hypothesis of the open piece, and commit what it shares with the one before."""
        recognitions = self._transcriber.recognize_pieces([piece]) if piece.speech is not None else []
        segments = [*self._joined, *(segment_of(recognition, piece) for recognition in recognitions)]
        words = " ".join(segment.text for segment in stitch(segments, [True] * len(segments))).split()
        agreed = words[: common_prefix(words, self._hypothesis)]
        if common_prefix(agreed, self._committed) == len(self._committed):
            self._committed = agreed
        self._hypothesis = words

    def _update(self) -> StreamUpdate:
        finished = tuple(self._finished[self._told :])
        self._told = len(self._finished)
        tentative = self._hypothesis[len(self._committed) :]
        return StreamUpdate(self.seconds, finished, " ".join(self._committed), " ".join(tentative))


def stream(blocks: Iterable[NDArray[np.float32]], transcriber: RecordingTranscriber) -> Iterator[StreamUpdate]:
    """Transcribe blocks `[samples]`, mono at 16 kHz, as they come, to their end."""
    live = StreamTranscriber(transcriber)
    for block in blocks:
        update = live.feed(block)
        if update is not None:
            yield update
    yield live.finish()
