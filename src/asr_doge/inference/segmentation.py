"""Recordings of any length, also those that have not ended yet, into chunks that a model reads at once.

Promises: chunks of at most the given length, in order, which together hold every sample; each ends in a pause, as the
voice activity detector hears it, and only where nobody pauses for that long do two neighbours overlap, so that each
word is whole in one of them: `stitch` then joins their texts. Where a cut falls does not depend on what comes after it
was made, nor on how the samples arrive, so that a stream is cut as its recording is. Memory is that of one chunk.
It knows neither models nor files.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from asr_doge.audio.resampling import SAMPLE_RATE
from asr_doge.audio.voice_activity import FRAME_SAMPLES, VoiceActivityDetector
from asr_doge.inference.results import Segment

PAUSE_SECONDS = 1.0
"""A pause of this length ends any chunk, and the longer the chunk already is, the shorter a pause will do."""
USUAL_SHARE = 0.6
"""From this share of the longest chunk on, any pause will do: few clips that a model was trained on are longer."""
MARGIN_SECONDS = 0.3
"""Of the silence around speech, what its chunk keeps at least; the detector clips soft sounds."""
SHORTEST_PAUSE_SECONDS = 0.1
"""No shorter pause ends a chunk: the closure of a consonant is as long."""
OVERLAP_SECONDS = 1.5
"""Without such a pause, how much of a chunk's end is the start of the next too; longer than any word."""
WINDOW_SECONDS = 0.1
"""Length of a moment, when the quietest is looked for."""
STITCHED_WORDS = 8
"""Words at the joint of two overlapping chunks among which the same ones are looked for; more than 1.5 s holds."""
_BLOCK_SAMPLES = 1 << 16


@dataclass(frozen=True)
class Chunk:
    """A part of a recording.

    Attributes:
        samples: `[samples]`, at 16 kHz.
        start: where it begins in the recording, in seconds.
        speech: first and last moment of what may be speech, in seconds of the recording; None if there is none.
        overlaps_next: whether its end is the start of the next chunk too.
        is_gap: whether it is a silence, or other sound, between or beside the speech of a recording. A recording that
            is one chunk is none, for the detector may have missed the speech in it.
    """

    samples: NDArray[np.float32]
    start: float
    speech: tuple[float, float] | None
    overlaps_next: bool = False
    is_gap: bool = False

    @property
    def end(self) -> float:
        """Where it ends in the recording, in seconds."""
        return self.start + len(self.samples) / SAMPLE_RATE


class Segmenter:
    """Cuts one recording while it comes in.

    Args:
        max_seconds: longest chunk, in seconds.
    """

    def __init__(self, max_seconds: float = 30.0) -> None:
        self._longest = max(math.floor(max_seconds * SAMPLE_RATE), 8 * FRAME_SAMPLES)  # samples of a chunk
        self._detector = VoiceActivityDetector()
        self._open = np.zeros(0, dtype=np.float32)
        self._frames = 0  # whole ones in the open chunk
        self._spoken: list[int] = []  # which of them may hold speech
        self._frames_before = 0  # in the recording

    @property
    def open_chunk(self) -> Chunk:
        """What has come since the last cut."""
        return self._chunk(len(self._open))

    def feed(self, samples: NDArray[np.float32]) -> list[Chunk]:
        """Take more `[samples]` at 16 kHz, of any number; returns the chunks that they complete."""
        chunks = []
        for start in range(0, len(samples), _BLOCK_SAMPLES):  # little at a time, for every cut copies what is left
            block = samples[start : start + _BLOCK_SAMPLES]
            self._open = np.concatenate([self._open, block])
            for may_be_speech in self._detector.feed(block):
                self._spoken += [self._frames] * may_be_speech
                self._frames += 1
                chunk = self._cut()
                if chunk is not None:
                    chunks.append(chunk)
        return chunks

    def finish(self) -> list[Chunk]:
        """What is left, in one chunk or two; the segmenter is then of no more use."""
        chunks = [self._shorten()] if len(self._open) > self._longest else []
        last = self.open_chunk
        if self._frames_before:
            last = replace(last, is_gap=last.speech is None)
        return [*chunks, last] if len(self._open) else chunks

    def _cut(self) -> Chunk | None:
        """The chunk that the latest frame completes, if it does."""
        count, spoken = self._frames, self._spoken
        if spoken and spoken[0] == count - 1 and count > _frames(PAUSE_SECONDS):
            return self._close(count - 1 - _frames(MARGIN_SECONDS))  # silence before speech is a chunk of its own
        if spoken and count - 1 - spoken[-1] >= self._pause_needed(count):
            last, margin = spoken[-1] + 1, min(_frames(MARGIN_SECONDS), (count - spoken[-1]) // 3)
            return self._close(self._quietest(last + margin, count - margin))
        return self._shorten() if count * FRAME_SAMPLES > self._longest else None

    def _pause_needed(self, count: int) -> int:
        """Frames of pause that end a chunk of `count` frames."""
        left = 1 - count * FRAME_SAMPLES / (USUAL_SHARE * self._longest)
        return max(_frames(PAUSE_SECONDS * left), _frames(SHORTEST_PAUSE_SECONDS))

    def _shorten(self) -> Chunk:
        """Cut a chunk that has grown too long, at its quietest moment, as nobody pauses."""
        count = self._longest // FRAME_SAMPLES
        if not self._spoken or self._spoken[0] >= count:
            return self._close(count)
        return self._close(self._quietest(count * 2 // 3, count), min(_frames(OVERLAP_SECONDS), count // 4))

    def _quietest(self, start: int, stop: int) -> int:
        """The frame, of those from `start` to `stop`, amid the quietest moment; of equal moments the middle one."""
        if stop - start < 2:
            return start
        samples = self._open[start * FRAME_SAMPLES : stop * FRAME_SAMPLES]
        energy = np.square(samples, dtype=np.float64).reshape(-1, FRAME_SAMPLES).sum(axis=1)
        window = min(_frames(WINDOW_SECONDS), len(energy))
        moments = np.convolve(energy, np.ones(window), mode="valid")
        quietest = np.flatnonzero(moments <= moments.min() + 1e-9)
        return start + int(quietest[len(quietest) // 2]) + window // 2

    def _close(self, frames: int, overlap: int = 0) -> Chunk:
        """Take the first frames out of the open chunk, but for the overlap."""
        chunk = self._chunk(frames * FRAME_SAMPLES)
        chunk = replace(chunk, overlaps_next=overlap > 0, is_gap=chunk.speech is None)
        kept = frames - overlap
        self._open = self._open[kept * FRAME_SAMPLES :].copy()
        self._spoken = [index - kept for index in self._spoken if index >= kept]
        self._frames -= kept
        self._frames_before += kept
        return chunk

    def _chunk(self, samples: int) -> Chunk:
        """The first `samples` of the open chunk."""
        before = self._frames_before
        spoken = [index for index in self._spoken if index * FRAME_SAMPLES < samples]
        speech = (_seconds(before + spoken[0]), _seconds(before + spoken[-1] + 1)) if spoken else None
        return Chunk(self._open[:samples], _seconds(before), speech)


def cut_into_chunks(blocks: Iterable[NDArray[np.float32]], max_seconds: float = 30.0) -> Iterator[Chunk]:
    """Cut a recording that comes in blocks `[samples]` at 16 kHz, as a `Segmenter` does."""
    segmenter = Segmenter(max_seconds)
    for block in blocks:
        yield from segmenter.feed(block)
    yield from segmenter.finish()


def stitch(segments: Sequence[Segment], overlaps: Sequence[bool]) -> list[Segment]:
    """Join the texts of chunks: words that two neighbours share are kept once, and segments without text left out.

    Args:
        segments: what was said in each chunk.
        overlaps: for each chunk, whether it overlaps the next.
    """
    stitched: list[Segment] = []
    joins = False
    for segment, overlaps_next in zip(segments, overlaps, strict=True):
        if joins and stitched:
            stitched[-1], segment = _join(stitched[-1], segment)
        stitched.append(segment)
        joins = overlaps_next
    return [segment for segment in stitched if segment.text]


def _join(first: Segment, second: Segment) -> tuple[Segment, Segment]:
    """Two overlapping segments without what both say.

    The longest run of words that ends the one and begins the other is the joint, give or take the words that the cut
    went through: those after it in the first, and before it in the second, are dropped. The one ends and the other
    begins where their words do, or in the middle of the overlap where word times are unknown. A segment that lost words
    has no alternatives any more, since they are texts of all of it. Where one says nothing, both stay as they are.
    """
    if not first.text or not second.text:
        return first, second
    middle = (second.start + first.end) / 2
    heard, again = first.text.split(), second.text.split()
    tail, head = heard[-STITCHED_WORDS:], again[:STITCHED_WORDS]
    size, _, i, j = max(
        (common_prefix_length(tail[i:], head[j:]), -(len(tail) - i) - j, i, j)
        for i in range(len(tail) + 1)
        for j in range(len(head) + 1)
    )
    kept = len(heard) - len(tail) + i + size if size else len(heard)
    dropped = j + size if size else 0
    before, after = first.words[:kept], second.words[dropped:]
    end = before[-1].end if before else max(middle, first.start)
    after = tuple(replace(word, start=max(word.start, end), end=max(word.end, end)) for word in after)
    return (
        replace(
            first,
            text=" ".join(heard[:kept]),
            end=end,
            words=before,
            alternatives=first.alternatives if kept == len(heard) else (),
        ),
        replace(
            second,
            text=" ".join(again[dropped:]),
            start=after[0].start if after else min(middle, second.end),
            end=max(second.end, after[-1].end) if after else second.end,
            words=after,
            alternatives=() if dropped else second.alternatives,
        ),
    )


def common_prefix_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Number of words at the start of both that are the same."""
    return next((count for count, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _frames(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE / FRAME_SAMPLES)


def _seconds(frames: int) -> float:
    return frames * FRAME_SAMPLES / SAMPLE_RATE
