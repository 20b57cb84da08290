"""Place sound in time: one clock for all streams of a file, and silence where nothing was recorded.

Promises: sound at t seconds on a file's clock is t seconds after the start of the waveform, within `TOLERANCE_SECONDS`.
A late start and a pause of up to `LONGEST_GAP_SECONDS` become silence. Where the clock was reset, as in joined files,
sound continues at the end of the longest stream. It knows neither containers nor the values of samples.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from asr_doge.audio.sound import Sound

TOLERANCE_SECONDS = 0.1
"""Container clocks are rounded, and recorders stamp a packet with the time at which it arrived."""
LONGEST_GAP_SECONDS = 3600.0
"""A longer jump of the clock is not a pause of the recorder: the sound continues without silence."""
BACKWARDS_SECONDS = 0.5
"""A clock that goes back this far was reset; the reordering of pictures goes back less."""


class Clock:
    """Times of packets of several streams as seconds since the start of the recording.

    Args:
        zero: time on the file's clock at its start, in seconds.
    """

    def __init__(self, zero: float = 0.0) -> None:
        self._latest_offset = -zero
        self._offsets: dict[int, float] = {}  # per stream: near a joint, streams change over one after the other
        self._starts: dict[int, float] = {}
        self._ends: dict[int, float] = {}

    @property
    def end(self) -> float:
        """End of the longest stream so far."""
        return max(self._ends.values(), default=0.0)

    def length_of(self, stream: int) -> float:
        """Time from the first packet of a stream to the end of its latest."""
        return self._ends.get(stream, 0.0) - self._starts.get(stream, 0.0)

    def place(self, stream: int, stamp: float, duration: float) -> float:
        """Start of the next packet of a stream, which has the time stamp `stamp` and the given duration, in seconds."""
        offset = self._offsets.get(stream, self._latest_offset)
        if not self._fits(stream, stamp + offset):
            offset = self._latest_offset
            if not self._fits(stream, stamp + offset):
                offset = self._latest_offset = self.end - stamp
        self._offsets[stream] = offset
        self._starts.setdefault(stream, stamp + offset)
        self._ends[stream] = max(self._ends.get(stream, 0.0), stamp + offset + duration)
        return stamp + offset

    def _fits(self, stream: int, moment: float) -> bool:
        end = self._ends.get(stream, 0.0)
        return end - BACKWARDS_SECONDS <= moment <= end + LONGEST_GAP_SECONDS


def fill_gaps(sounds: Iterable[Sound]) -> Iterator[Sound]:
    """The same sounds with silence between them, so that each starts at its time."""
    placed = 0.0
    for sound in sounds:
        missing = sound.start - placed if sound.start is not None else 0.0
        if missing > TOLERANCE_SECONDS:
            for silence in _silence(round(missing * sound.rate), sound):
                yield silence
                placed += silence.seconds
        yield sound
        placed += sound.seconds


def _silence(samples: int, like: Sound) -> Iterator[Sound]:
    """Silence in small blocks, since a pause may last for an hour."""
    for start in range(0, samples, like.rate):
        yield Sound(np.zeros((len(like.planes), min(like.rate, samples - start)), dtype=np.float32), like.rate)
