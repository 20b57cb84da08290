"""Change a waveform's sampling rate.

Promises: `resample` keeps the duration and the level, removes what the new rate cannot hold, and returns the input
itself when the two rates are equal. It does not know files, channels or models.
"""

import math

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
