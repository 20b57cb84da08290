"""Levels: filtering for the detector and the search for pauses, and the level of the encoder's input.

Promises: `without_rumble` and `DetectorInput` remove constant offsets and mains hum from the input of the voice
activity detector and of the search for pauses, and `DetectorInput` raises quiet recordings to the level that the
detector needs. The samples for the encoder keep offset and hum, since removing them was measured to cost words
(docs/formats.md); only a clip that is raised loses its offset. `normalize_level` changes the level of clips only if
they are so quiet, or so far above full scale, that words were lost. How the samples are divided into calls changes
nothing. It does not decide what is speech.
"""

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from asr_doge.audio.resampling import SAMPLE_RATE
from asr_doge.audio.voice_activity import FRAME_SAMPLES

if TYPE_CHECKING:
    from av.filter import Graph

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
        self._filter: Graph | None = None
        self._first = 0.0

    def remove(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        from av import AudioFrame

        if not samples.size:
            return samples
        if self._filter is None:
            # To begin settled on a value is to begin at rest on what is above it.
            self._filter, self._first = _high_pass(), float(samples[0])
        frame = AudioFrame.from_ndarray(samples[None] - np.float64(self._first), format="dblp", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        self._filter.push(frame)
        filtered = self._filter.pull()
        assert isinstance(filtered, AudioFrame)
        return filtered.to_ndarray()[0].astype(np.float32)


def _high_pass() -> "Graph":
    """FFmpeg's filter, a Butterworth one of order 4: two of order 2, whose quality is that of its pairs of poles."""
    # Not SciPy's, since scipy.signal takes a second to import.
    from av.filter import Graph

    graph = Graph()
    graph.threads = 1
    form = f"sample_rate={SAMPLE_RATE}:sample_fmt=dblp:channel_layout=mono:time_base=1/{SAMPLE_RATE}"
    qualities = [1 / (2 * math.cos(math.pi * odd / 8)) for odd in (1, 3)]
    parts = [f"frequency={RUMBLE_HERTZ}:width_type=q:width={quality}:precision=f64" for quality in qualities]
    graph.link_nodes(
        graph.add("abuffer", form), *(graph.add("highpass", part) for part in parts), graph.add("abuffersink")
    ).configure()
    return graph
