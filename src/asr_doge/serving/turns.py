"""Detect turns: stretches in which somebody speaks, in a live stream or a file.

Promises: a turn includes the padding before it that the client asked for, unless the turn before has it already;
silence between turns is left out; turns do not depend on the loudness of a recording, nor on how its samples are
divided into calls. Memory is that of the padding; of `TurnCutter`, also that of a chunk.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from asr_doge.audio.level import DetectorInput
from asr_doge.audio.resampling import SAMPLE_RATE
from asr_doge.audio.voice_activity import FRAME_SAMPLES, VoiceActivityDetector
from asr_doge.inference.chunking import Chunk, Chunker
from asr_doge.inference.cutting import cut_into_chunks
from asr_doge.serving.session_settings import TurnDetection

FRAME_MS = 1000 * FRAME_SAMPLES / SAMPLE_RATE
LATEST_FRAMES, SPEECH_FRAMES = 4, 3
"""A turn begins when `SPEECH_FRAMES` of the latest `LATEST_FRAMES` may be speech (about 0.1 s, below any word)."""

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class TurnStarted:
    """A turn began at sample `at` of the stream; its audio follows."""

    at: int


@dataclass(frozen=True)
class TurnAudio:
    """More `[samples]` of the turn."""

    samples: Samples


@dataclass(frozen=True)
class TurnStopped:
    """The turn ended at sample `at` of the stream, after the silence that ended it."""

    at: int


TurnEvent = TurnStarted | TurnAudio | TurnStopped


class TurnDetector:
    """Detects the turns of one stream.

    Args:
        settings: of the session.
        heard: samples of the stream that came before.
    """

    def __init__(self, settings: TurnDetection, heard: int = 0) -> None:
        self._detector, self._detector_input = VoiceActivityDetector(), DetectorInput()
        self._silence = max(round(settings.silence_duration_ms / FRAME_MS), 1)
        padding = round(settings.prefix_padding_ms / FRAME_MS)
        self._before: deque[Samples] = deque(maxlen=padding + LATEST_FRAMES)
        self._latest: deque[bool] = deque(maxlen=LATEST_FRAMES)
        self._incomplete = np.zeros(0, dtype=np.float32)
        self._heard = heard  # samples in whole frames
        self._quiet = 0  # frames since the last that may be speech
        self.is_open = False

    def feed(self, samples: Samples) -> list[TurnEvent]:
        """Take more `[samples]` at 16 kHz, of any number."""
        flags = self._detector.feed(self._detector_input.feed(samples))
        held = np.concatenate([self._incomplete, samples])
        whole = len(flags) * FRAME_SAMPLES
        self._incomplete = held[whole:].copy()
        events: list[TurnEvent] = []
        for frame, may_be_speech in zip(held[:whole].reshape(-1, FRAME_SAMPLES), flags, strict=True):
            self._heard += FRAME_SAMPLES
            events += self._hear(frame, may_be_speech)
        return events

    def stop(self) -> list[TurnEvent]:
        """End the open turn, as the client asks; if none is open, the padding that is held becomes one."""
        events: list[TurnEvent] = [] if self.is_open else self._start()
        if len(self._incomplete):
            events.append(TurnAudio(self._incomplete))
        at = self._heard + len(self._incomplete)
        self._reset()  # the incomplete frame stays, and is the first of what comes before the next turn
        return [*events, TurnStopped(at)]

    def clear(self) -> None:
        """Discard the open turn and the padding that is held."""
        self._reset()

    def _hear(self, frame: Samples, may_be_speech: bool) -> list[TurnEvent]:
        self._latest.append(may_be_speech)
        if not self.is_open:
            self._before.append(frame)
            return self._start() if sum(self._latest) >= SPEECH_FRAMES else []
        self._quiet = 0 if may_be_speech else self._quiet + 1
        events: list[TurnEvent] = [TurnAudio(frame)]
        if self._quiet >= self._silence:
            self._reset()
            events.append(TurnStopped(self._heard))
        return events

    def _start(self) -> list[TurnEvent]:
        before = list(self._before)
        self._before.clear()
        self.is_open, self._quiet = True, 0
        started = TurnStarted(self._heard - sum(map(len, before)))
        return [started, TurnAudio(np.concatenate(before))] if before else [started]

    def _reset(self) -> None:
        self.is_open, self._quiet = False, 0
        self._before.clear()
        self._latest.clear()


class TurnCutter:
    """Cuts a recording into turns, as a live session finds them.

    A turn that the model can read at once stays whole, but for dead silence. So does a recording of that length in
    which no turn is found, since the detector may have missed its speech.

    Args:
        settings: of the turns.
        max_seconds: longest chunk; a longer turn is cut at its pauses.
    """

    def __init__(self, settings: TurnDetection, max_seconds: float) -> None:
        self._turns, self._max_seconds = TurnDetector(settings), max_seconds
        self._at = 0.0  # start of the latest turn, in seconds
        self._held: list[Samples] = []  # of a turn, as long as it could be read at once
        self._chunker: Chunker | None = None  # of a longer one
        self._beginning: list[Samples] | None = []  # of a recording without a turn, as long as it could be read at once

    def feed(self, samples: Samples) -> list[Chunk]:
        """Take more `[samples]` at 16 kHz, of any number; returns the chunks that they complete."""
        turns = self._turns.feed(samples)
        if self._beginning is not None:
            self._beginning.append(samples)
            if turns or not self._is_short(self._beginning):
                self._beginning = None
        return self._chunks(turns)

    def finish(self) -> list[Chunk]:
        """The rest of the last turn, or a recording without one."""
        if self._beginning is not None:
            return list(cut_into_chunks(self._beginning, self._max_seconds, may_use_process=False))
        return self._chunks(self._turns.stop()) if self._turns.is_open else []

    def _chunks(self, turns: Iterable[TurnEvent]) -> list[Chunk]:
        return [self._moved(chunk) for turn in turns for chunk in self._take(turn)]

    def _is_short(self, blocks: Sequence[Samples]) -> bool:
        """Whether the model can read it at once."""
        return sum(map(len, blocks)) <= self._max_seconds * SAMPLE_RATE

    def _take(self, turn: TurnEvent) -> list[Chunk]:
        """The chunks that an event completes, with times from the turn's start."""
        if isinstance(turn, TurnStarted):
            self._at = turn.at / SAMPLE_RATE
            return []
        if isinstance(turn, TurnAudio):
            return self._hear(turn.samples)
        held, chunker = self._held, self._chunker
        self._held, self._chunker = [], None
        if chunker is not None:
            return chunker.finish()
        return list(cut_into_chunks(held, self._max_seconds, may_use_process=False))

    def _hear(self, samples: Samples) -> list[Chunk]:
        if self._chunker is None:
            self._held.append(samples)
            if self._is_short(self._held):
                return []
            samples, self._held = np.concatenate(self._held), []
            self._chunker = Chunker(self._max_seconds)
        return self._chunker.feed(samples)

    def _moved(self, chunk: Chunk) -> Chunk:
        """A chunk with its times counted from the recording's start instead of the turn's."""
        speech = (chunk.speech[0] + self._at, chunk.speech[1] + self._at) if chunk.speech else None
        return replace(chunk, start=chunk.start + self._at, speech=speech)
