"""Cut recordings of any length, also those still arriving, into chunks that a model reads at once.

Promises: chunks have at most the given length, are in order, and together hold every sample. They end in a pause found
by the voice activity detector; only if there is no pause within that length do two neighbours overlap, so that each
word is whole in one of them (`asr_doge.inference.stitching` joins their texts). A cut depends neither on later audio
nor on how the samples arrive, so a stream is cut like its recording. Memory is that of one chunk.
It knows neither models nor files, nor which recordings may stay whole (`asr_doge.inference.cutting`).
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from asr_doge.audio.level import DetectorInput, without_rumble
from asr_doge.audio.resampling import SAMPLE_RATE
from asr_doge.audio.voice_activity import FRAME_SAMPLES, VoiceActivityDetector

PAUSE_SECONDS = 1.0
"""A pause of this length ends any chunk; the longer the chunk already is, the shorter the pause that suffices."""
USUAL_SHARE = 0.6
"""A chunk longer than this share of the longest ends at any pause: few training clips of a model are longer."""
MARGIN_SECONDS = 0.3
"""Least silence around speech that its chunk keeps, in seconds; the detector clips soft sounds."""
SHORTEST_PAUSE_SECONDS = 0.1
"""A shorter pause never ends a chunk: the closure of a consonant lasts as long."""
OVERLAP_SECONDS = 1.5
"""Overlap of two chunks if there is no such pause, in seconds; longer than any word."""
WINDOW_SECONDS = 0.1
"""Length of the window in which the quietest moment is searched, in seconds."""
BLOCK_SAMPLES = 1 << 16
"""Samples that are looked at together, four seconds."""


@dataclass(frozen=True)
class Chunk:
    """A part of a recording.

    Attributes:
        samples: `[samples]`, at 16 kHz.
        start: where it begins in the recording, in seconds.
        speech: start and end of what may be speech, in seconds of the recording; None if there is none, or if the
            voice activity detector was not run.
        overlap_before: seconds at its start that the chunk before also holds.
        overlap_after: seconds at its end that the next chunk also holds.
        is_gap: whether it is a silence, or other sound, between or beside the speech of a recording. False for a
            recording that is one chunk, since the detector may have missed its speech.
        is_uncut: whether it is a whole recording, or turn of one, on which the voice activity detector was not run.
    """

    samples: NDArray[np.float32]
    start: float
    speech: tuple[float, float] | None
    overlap_before: float = 0.0
    overlap_after: float = 0.0
    is_gap: bool = False
    is_uncut: bool = False

    @property
    def end(self) -> float:
        """End in the recording, in seconds."""
        return self.start + len(self.samples) / SAMPLE_RATE

    @property
    def overlap(self) -> tuple[float, float] | None:
        """The overlap with the chunk before, in seconds of the recording."""
        return (self.start, self.start + self.overlap_before) if self.overlap_before else None

    def speech_bounds(self) -> tuple[float, float]:
        """Start and end of possible speech, in seconds of the recording; those of the chunk if there is none.

        For a recording that was not cut the detector runs only here, since it takes longer than a small model.
        """
        speech = self.speech
        if self.is_uncut:
            spoken = np.flatnonzero(VoiceActivityDetector().feed(self.samples))
            first, end = (int(spoken[0]), int(spoken[-1]) + 1) if len(spoken) else (0, 0)
            speech = (self.start + seconds_of(first), self.start + seconds_of(end)) if end else None
        return speech or (self.start, self.end)


class Cutter(Protocol):
    """Cuts one recording while it arrives, as `Chunker` does or otherwise."""

    def feed(self, samples: NDArray[np.float32]) -> list[Chunk]:
        """Take more `[samples]` at 16 kHz, of any number; returns the chunks that they complete."""

    def finish(self) -> list[Chunk]:
        """The remaining chunks."""


class Chunker:
    """Cuts one recording while it arrives.

    Args:
        max_seconds: longest chunk, in seconds.
        after: the chunk of the recording after which the samples go on; default, they begin the recording.
    """

    def __init__(self, max_seconds: float = 30.0, after: Chunk | None = None) -> None:
        self.longest = longest_samples(max_seconds)
        """Samples of a chunk, at most."""
        self._detector = VoiceActivityDetector()
        self._detector_input = DetectorInput()
        self._open = np.zeros(0, dtype=np.float32)
        self._frames = 0  # complete frames in the open chunk
        self._spoken: list[int] = []  # those of them that may hold speech
        self._overlap = frames_of(after.overlap_after) if after else 0  # frames that the chunk before also holds
        self._frames_before = frames_of(after.end) - self._overlap if after else 0  # in the recording

    @property
    def open_chunk(self) -> Chunk:
        """The audio since the last cut."""
        return self._chunk(len(self._open))

    def feed(self, samples: NDArray[np.float32]) -> list[Chunk]:
        """Take more `[samples]` at 16 kHz, of any number; returns the chunks that they complete."""
        chunks = []
        for start in range(0, len(samples), BLOCK_SAMPLES):  # small blocks, since every cut copies the rest
            block = samples[start : start + BLOCK_SAMPLES]
            self._open = np.concatenate([self._open, block])
            for may_be_speech in self._detector.feed(self._detector_input.feed(block)):
                self._spoken += [self._frames] * may_be_speech
                self._frames += 1
                chunk = self._cut()
                if chunk is not None:
                    chunks.append(chunk)
        return chunks

    def finish(self) -> list[Chunk]:
        """The remaining audio, in one chunk or two; the chunker cannot be used afterwards."""
        chunks = [self._shorten()] if len(self._open) > self.longest else []
        last = self.open_chunk
        if self._frames_before:
            last = replace(last, is_gap=last.speech is None)
        return [*chunks, last] if len(self._open) else chunks

    def _cut(self) -> Chunk | None:
        """The chunk that the latest frame completes, if it does."""
        count, spoken = self._frames, self._spoken
        if spoken and spoken[0] == count - 1 and count > frames_of(PAUSE_SECONDS):
            return self._close(count - 1 - frames_of(MARGIN_SECONDS))  # silence before speech is a chunk of its own
        if spoken and count - 1 - spoken[-1] >= self._pause_needed(count):
            last, margin = spoken[-1] + 1, min(frames_of(MARGIN_SECONDS), (count - spoken[-1]) // 3)
            return self._close(self._quietest(last + margin, count - margin))
        return self._shorten() if count * FRAME_SAMPLES > self.longest else None

    def _pause_needed(self, count: int) -> int:
        """Frames of pause that end a chunk of `count` frames."""
        left = 1 - count * FRAME_SAMPLES / (USUAL_SHARE * self.longest)
        return max(frames_of(PAUSE_SECONDS * left), frames_of(SHORTEST_PAUSE_SECONDS))

    def _shorten(self) -> Chunk:
        """Cut a chunk that has become too long at its quietest moment, since there is no pause."""
        count = self.longest // FRAME_SAMPLES
        if not self._spoken or self._spoken[0] >= count:
            return self._close(count)
        return self._close(self._quietest(count * 2 // 3, count), min(frames_of(OVERLAP_SECONDS), count // 4))

    def _quietest(self, start: int, stop: int) -> int:
        """The middle frame of the quietest window between `start` and `stop`; among equals the middle one."""
        if stop - start < 2:
            return start
        samples = without_rumble(self._open[start * FRAME_SAMPLES : stop * FRAME_SAMPLES])
        energy = np.square(samples, dtype=np.float64).reshape(-1, FRAME_SAMPLES).sum(axis=1)
        window = min(frames_of(WINDOW_SECONDS), len(energy))
        moments = np.convolve(energy, np.ones(window), mode="valid")
        quietest = np.flatnonzero(moments <= moments.min() + 1e-9)
        return start + int(quietest[len(quietest) // 2]) + window // 2

    def _close(self, frames: int, overlap: int = 0) -> Chunk:
        """Remove the first frames of the open chunk, except the overlap, and return them as a chunk."""
        chunk = self._chunk(frames * FRAME_SAMPLES)
        chunk = replace(chunk, overlap_after=seconds_of(overlap), is_gap=chunk.speech is None)
        kept = frames - overlap
        self._open = self._open[kept * FRAME_SAMPLES :].copy()
        self._spoken = [index - kept for index in self._spoken if index >= kept]
        self._frames -= kept
        self._frames_before += kept
        self._overlap = overlap
        return chunk

    def _chunk(self, samples: int) -> Chunk:
        """The first `samples` of the open chunk."""
        before = self._frames_before
        spoken = [index for index in self._spoken if index * FRAME_SAMPLES < samples]
        speech = (seconds_of(before + spoken[0]), seconds_of(before + spoken[-1] + 1)) if spoken else None
        return Chunk(self._open[:samples], seconds_of(before), speech, seconds_of(self._overlap))


def cut_with(cutter: Cutter, blocks: Iterable[NDArray[np.float32]]) -> Iterator[Chunk]:
    """Cut a recording that arrives in blocks `[samples]` at 16 kHz."""
    for block in blocks:
        yield from cutter.feed(block)
    yield from cutter.finish()


def longest_samples(max_seconds: float) -> int:
    """Samples of a chunk of at most `max_seconds`."""
    return max(math.floor(max_seconds * SAMPLE_RATE), 8 * FRAME_SAMPLES)


def frames_of(seconds: float) -> int:
    """Frames of the detector, the nearest number of them."""
    return round(seconds * SAMPLE_RATE / FRAME_SAMPLES)


def seconds_of(frames: int) -> float:
    """Length of so many frames of the detector."""
    return frames * FRAME_SAMPLES / SAMPLE_RATE
