"""Change a waveform's sampling rate.

Promises: `resample` keeps the duration and the level, removes what the new rate cannot hold, and returns the input
itself when the two rates are equal; `resample_blocks` does the same to a recording that comes in blocks, in memory of a
few seconds. It does not know files, channels or models.
"""

import math
from collections.abc import Iterable, Iterator
from functools import lru_cache

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
    up, down = to_rate // divisor, from_rate // divisor
    return np.asarray(resample_poly(waveform, up, down, window=_low_pass(max(up, down))), dtype=np.float32)


@lru_cache(maxsize=4)
def _low_pass(factor: int) -> NDArray[np.float32]:
    """SciPy's own filter for `resample_poly`, kept: from 44,247 Hz it has 900,000 taps, and costs more than its use."""
    from scipy.signal import firwin

    return np.asarray(firwin(20 * factor + 1, 1 / factor, window=("kaiser", 5.0)), dtype=np.float32)


def resample_blocks(
    blocks: Iterable[NDArray[np.float32]], from_rate: int, to_rate: int
) -> Iterator[NDArray[np.float32]]:
    """Resample a waveform that comes in blocks; the results join up to `resample` of all of it.

    Args:
        blocks: `[samples]` each, of any length.
        from_rate, to_rate: as in `resample`.
    """
    if from_rate == to_rate:
        yield from blocks
        return
    divisor = math.gcd(from_rate, to_rate)
    up, down = to_rate // divisor, from_rate // divisor
    # Only at multiples of `down` does an output sample fall on an input sample, so that it is there that one may cut.
    # The filter reaches 10 * max(up, down) / up input samples to either side; that much is read again.
    reach = down * math.ceil((10 * max(up, down) / up + 1) / down)
    held = np.zeros(0, dtype=np.float32)
    before = 0  # samples at the start of `held` that are done, and there for the filter only
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
