"""When sound is heard: one clock for all streams of a file, and silence where nothing was recorded.

Promises: what stands on a file's clock at t seconds is heard t seconds after the start of the waveform, within
`TOLERANCE_SECONDS`; a late start and a pause of up to `LONGEST_GAP_SECONDS` become silence; where the clock was set
anew, as in joined files, sound follows where the longest stream had come to. It knows neither containers nor samples'
values.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from asr_doge.audio.sound import Sound

TOLERANCE_SECONDS = 0.1
"""Clocks in containers are rounded, and recorders note the time at which a packet happened to arrive."""
LONGEST_GAP_SECONDS = 3600.0
"""A longer leap of the clock is none of the recorder's: the sound goes on without silence."""
BACKWARDS_SECONDS = 0.5
"""A clock that goes back this far was set anew; pictures are stored out of order by less."""


class Clock:
    """Times of packets of several streams as seconds since the start of the recording.

    Args:
        zero: what the file's clock shows at its start, in seconds.
    """

    def __init__(self, zero: float = 0.0) -> None:
        self._latest_offset = -zero
        self._offsets: dict[int, float] = {}  # of each stream: near a joint, streams change over one by one
        self._starts: dict[int, float] = {}
        self._ends: dict[int, float] = {}

    @property
    def end(self) -> float:
        """Where the longest stream has come to."""
        return max(self._ends.values(), default=0.0)

    def length_of(self, stream: int) -> float:
        """From the first packet of a stream to the end of its latest."""
        return self._ends.get(stream, 0.0) - self._starts.get(stream, 0.0)

    def place(self, stream: int, stamp: float, duration: float) -> float:
        """When the next packet of a stream is due, which is stamped with `stamp` seconds and lasts for `duration`."""
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
    """The same sounds with silence between them, so that each is heard when it is due."""
    heard = 0.0
    for sound in sounds:
        missing = sound.start - heard if sound.start is not None else 0.0
        if missing > TOLERANCE_SECONDS:
            for silence in _silence(round(missing * sound.rate), sound):
                yield silence
                heard += silence.seconds
        yield sound
        heard += sound.seconds


def _silence(samples: int, like: Sound) -> Iterator[Sound]:
    """Little at a time, since a pause may last for an hour."""
    for start in range(0, samples, like.rate):
        yield Sound(np.zeros((len(like.planes), min(like.rate, samples - start)), dtype=np.float32), like.rate)
