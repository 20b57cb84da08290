"""Levels: filtering for the detector and the search for pauses, and the level of the encoder's input.

Promises: `without_rumble` and `DetectorInput` remove constant offsets and mains hum from the input of the voice
activity detector and of the search for pauses, and `DetectorInput` raises quiet recordings to the level that the
detector needs. The samples for the encoder keep offset and hum, since removing them was measured to cost words
(docs/formats.md); only a clip that is raised loses its offset. `normalize_level` changes the level of clips only if
they are so quiet, or so far above full scale, that words were lost. How the samples are divided into calls changes
nothing. It does not decide what is speech.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from asr_doge.audio.resampling import SAMPLE_RATE
from asr_doge.audio.voice_activity import FRAME_SAMPLES

RUMBLE_HERTZ = 100.0
"""Cutoff in Hz: mains hum is below, voices are above."""
DETECTED_PEAK = 0.05
"""Recordings with a lower peak are raised to it for the detector."""
NOISE_PEAK = 10 ** (-80 / 20)
"""A lower peak is rounding of 16 bits, and is not raised."""
_MOST_GAIN = 100.0
_FORGETTING = 0.999
"""Decay of the running peak, per frame; it halves in 22 s."""
QUIET_PEAK, RAISED_PEAK = 0.007, 0.3
"""Clips below the first (-43 dB) are raised to the second: nano loses words from -50 dB downwards, and none at -40."""
LOUD_PEAK, LOWERED_PEAK = 1.0, 0.9


def without_rumble(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """`[samples]` at 16 kHz without offset and hum."""
    return _Rumble().remove(samples) if samples.size else samples


class DetectorInput:
    """Filters and scales a recording for the voice activity detector, as its samples arrive."""

    def __init__(self) -> None:
        self._rumble = _Rumble()
        self._incomplete = np.zeros(0, dtype=np.float32)
        self._loudest = 0.0

    def feed(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """The complete frames, filtered and scaled, that these `[samples]` add."""
        held = np.concatenate([self._incomplete, self._rumble.remove(samples)])
        whole = len(held) // FRAME_SAMPLES * FRAME_SAMPLES
        self._incomplete = held[whole:].copy()
        frames = held[:whole].reshape(-1, FRAME_SAMPLES)
        peaks = np.abs(frames).max(axis=1, initial=0.0)
        return (frames * np.array([self._gain(float(peak)) for peak in peaks], dtype=np.float32)[:, None]).ravel()

    def _gain(self, peak: float) -> float:
        self._loudest = max(_FORGETTING * self._loudest, peak)
        if peak <= NOISE_PEAK:
            return 1.0
        if self._loudest > LOUD_PEAK:
            return LOUD_PEAK / self._loudest
        return min(max(DETECTED_PEAK / self._loudest, 1.0), _MOST_GAIN)


def normalize_level(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Bring a clip `[samples]` to a level at which the encoder recognizes words; most clips are returned unchanged.

    A constant offset is not loudness. A quiet clip that has one is raised by its speech alone, and loses the offset,
    which would otherwise be raised too.
    """
    low, high = float(samples.min(initial=0.0)), float(samples.max(initial=0.0))
    if max(-low, high) > LOUD_PEAK:
        return samples * np.float32(LOWERED_PEAK / max(-low, high))
    if not samples.size or np.ptp(samples) >= 2 * QUIET_PEAK:
        return samples
    around = samples - np.float32(samples.mean(dtype=np.float64))
    peak = float(np.abs(around).max())
    if peak <= NOISE_PEAK or peak >= QUIET_PEAK:
        return samples
    return around * np.float32(RAISED_PEAK / peak)


class _Rumble:
    """A high-pass filter that starts settled on the first sample, so that an offset makes no click."""

    def __init__(self) -> None:
        self._state: NDArray[np.float64] | None = None

    def remove(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        from scipy.signal import sosfilt

        if not samples.size:
            return samples
        sections, settled = _high_pass()
        if self._state is None:
            self._state = settled * float(samples[0])
        filtered, self._state = sosfilt(sections, samples, zi=self._state)
        return np.asarray(filtered, dtype=np.float32)


@lru_cache(maxsize=1)
def _high_pass() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sections of a Butterworth filter of order 4, and their state after a long run of ones."""
    # Imported here, and above, because scipy.signal takes a noticeable part of a second.
    from scipy.signal import butter, sosfilt_zi

    sections = butter(4, RUMBLE_HERTZ, "highpass", fs=SAMPLE_RATE, output="sos")
    return sections, sosfilt_zi(sections)
