"""Change a waveform's sampling rate.

Promises: `resample` keeps duration and level, removes frequencies that the new rate cannot represent, and returns the
input itself if the two rates are equal; `resample_blocks` does the same for a recording that arrives in blocks, in
memory of a few seconds. It does not know files, channels or models.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
"""Sampling rate of every waveform inside the package, in Hz."""


def resample(waveform: NDArray[np.float32], from_rate: int, to_rate: int) -> NDArray[np.float32]:
    """Resample a mono waveform with a polyphase low-pass filter.

    Args:
        waveform: `[samples]`, float32.
        from_rate: sampling rate of `waveform`, in Hz, a positive integer.
        to_rate: wanted sampling rate, in Hz, a positive integer.

    Returns:
        `[ceil(samples * to_rate / from_rate)]`, float32. The same array, not a copy, when the rates are equal.

    Raises:
        ValueError: a rate below 1 Hz.
    """
    if from_rate < 1 or to_rate < 1:
        raise ValueError(f"sampling rates must be positive, got {from_rate} Hz and {to_rate} Hz")
    if from_rate == to_rate or waveform.size == 0:
        return waveform
    # Imported here because scipy.signal takes a noticeable part of a second and most inputs are at 16 kHz already.
    from scipy.signal import resample_poly

    divisor = math.gcd(from_rate, to_rate)
    resampled = resample_poly(waveform, to_rate // divisor, from_rate // divisor)
    return np.asarray(resampled, dtype=np.float32)


def resample_blocks(
    blocks: Iterable[NDArray[np.float32]], from_rate: int, to_rate: int
) -> Iterator[NDArray[np.float32]]:
    """Resample a waveform that arrives in blocks; the joined results equal `resample` of the whole.

    Args:
        blocks: `[samples]` each, of any length.
        from_rate, to_rate: as in `resample`.
    """
    if from_rate == to_rate:
        yield from blocks
        return
    divisor = math.gcd(from_rate, to_rate)
    up, down = to_rate // divisor, from_rate // divisor
    # Only at multiples of `down` does an output sample coincide with an input sample, so blocks are cut there.
    # The filter reaches 10 * max(up, down) / up input samples to either side; these are read again.
    reach = down * math.ceil((10 * max(up, down) / up + 1) / down)
    held = np.zeros(0, dtype=np.float32)
    before = 0  # samples at the start of `held` that are done and kept only for the filter
    for block in blocks:
        held = np.concatenate([held, block])
        ready = (held.size - before - reach) // down * down
        if ready >= from_rate:
            end = before + ready
            yield resample(held[: end + reach], from_rate, to_rate)[before // down * up : end // down * up]
            kept = max(end - reach, 0)
            held, before = held[kept:], end - kept
    if held.size > before:
        yield resample(held, from_rate, to_rate)[before // down * up :]
