"""Where somebody begins and ends to speak in a live stream.

Promises: what is said is given with the sound before it that the client asked for, silence between turns is not, and
how the samples are cut into calls changes nothing. Memory is that of the sound before a turn.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asr_doge.audio.resampling import SAMPLE_RATE
from asr_doge.audio.voice_activity import FRAME_SAMPLES, VoiceActivityDetector
from asr_doge.serving.session_settings import TurnDetection

FRAME_MS = 1000 * FRAME_SAMPLES / SAMPLE_RATE
LATEST_FRAMES, SPEECH_FRAMES = 4, 3
"""A turn begins where so many of the latest frames may be speech: about 0.1 s, shorter than any word."""

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class TurnStarted:
    """A turn began `at` so many samples of the stream; its sound follows from there."""

    at: int


@dataclass(frozen=True)
class TurnAudio:
    """More `[samples]` of the turn."""

    samples: Samples


@dataclass(frozen=True)
class TurnStopped:
    """The turn ended `at` so many samples of the stream, silence after it included."""

    at: int


TurnEvent = TurnStarted | TurnAudio | TurnStopped


class TurnDetector:
    """Listens to one stream.

    Args:
        settings: of the session.
        heard: samples of the stream that came before.
    """

    def __init__(self, settings: TurnDetection, heard: int = 0) -> None:
        self._detector = VoiceActivityDetector()
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
        flags = self._detector.feed(samples)
        held = np.concatenate([self._incomplete, samples])
        whole = len(flags) * FRAME_SAMPLES
        self._incomplete = held[whole:].copy()
        events: list[TurnEvent] = []
        for frame, may_be_speech in zip(held[:whole].reshape(-1, FRAME_SAMPLES), flags, strict=True):
            self._heard += FRAME_SAMPLES
            events += self._hear(frame, may_be_speech)
        return events

    def stop(self) -> list[TurnEvent]:
        """End the turn here, as the client wants it; without one, what was heard of late is one."""
        events: list[TurnEvent] = [] if self.is_open else self._start()
        if len(self._incomplete):
            events.append(TurnAudio(self._incomplete))
        at = self._heard + len(self._incomplete)
        self._reset()  # the incomplete frame stays, and is the first of what comes before the next turn
        return [*events, TurnStopped(at)]

    def clear(self) -> None:
        """Forget the open turn and what was heard of late."""
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
