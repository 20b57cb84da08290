"""Decide which recordings are cut, and cut them into chunks that a model reads at once.

Promises: a recording within the length of a chunk stays whole, unless there is dead silence in it or it is to be cut
like a stream. Others are cut as `asr_doge.inference.chunking` says, in another process once that pays.
It knows neither models nor files.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from asr_doge.audio.arrays import merge_short_blocks
from asr_doge.audio.level import NOISE_PEAK
from asr_doge.audio.voice_activity import FRAME_SAMPLES
from asr_doge.inference.chunking import BLOCK_SAMPLES, Chunk, Chunker, cut_with, frames_of, longest_samples, seconds_of
from asr_doge.inference.cutting_process import RecordingCutter

DEAD_SECONDS = 1.0
"""Seconds without any sound, above -80 dB: the recorder was off, or a track had not begun. A recording is cut at its
pauses then, even if it fits in a chunk. Models were not trained on such silence: around 1 s of it nano lost every
seventh word, around 2 s every fourth; cut at pauses, hardly any (bench/dead_silence.py)."""


def cut_into_chunks(
    blocks: Iterable[NDArray[np.float32]],
    max_seconds: float = 30.0,
    cut_at_pauses: bool = False,
    may_use_process: bool = True,
) -> Iterator[Chunk]:
    """Cut a recording that arrives in blocks `[samples]` at 16 kHz, as a `Chunker` does.

    Args:
        blocks: of one recording, in order.
        max_seconds: longest chunk, in seconds.
        cut_at_pauses: cut it although it is no longer than a chunk may be; else it stays whole, but for dead silence.
        may_use_process: cut it as `asr_doge.inference.cutting_process` says, not in this thread.
    """
    rest = iter(blocks)
    queued: list[NDArray[np.float32]] = []
    if not cut_at_pauses:
        room = longest_samples(max_seconds)
        while room >= 0 and (block := next(rest, None)) is not None:
            queued.append(block)
            room -= len(block)
        if room >= 0 and longest_dead_seconds(queued) < seconds_of(frames_of(DEAD_SECONDS) - 1):  # whole frames of it
            yield from _uncut(queued)
            return
    blocks = merge_short_blocks(chain(queued, rest), BLOCK_SAMPLES)
    if not may_use_process:
        yield from cut_with(Chunker(max_seconds), blocks)
        return
    with RecordingCutter(max_seconds) as cutter:
        yield from cut_with(cutter, blocks)


def _uncut(blocks: Sequence[NDArray[np.float32]]) -> Iterator[Chunk]:
    """A recording in one chunk, unless it is empty."""
    samples = np.concatenate([np.zeros(0, dtype=np.float32), *blocks])
    if len(samples):
        yield Chunk(samples, 0.0, None, is_uncut=True)


def longest_dead_seconds(blocks: Sequence[NDArray[np.float32]]) -> float:
    """Longest time without any sound in a recording that has some, in whole frames; a constant offset is no sound."""
    samples = np.concatenate([np.zeros(0, dtype=np.float32), *blocks])
    frames = samples[: len(samples) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    sounding = np.flatnonzero(np.ptp(frames, axis=1) > 2 * NOISE_PEAK)
    pauses = np.diff(sounding, prepend=-1, append=len(frames)) - 1
    return seconds_of(int(pauses.max())) if len(sounding) else 0.0
