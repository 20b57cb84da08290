"""Change a waveform's sampling rate.

Promises: `resample` keeps duration and level, removes frequencies that the new rate cannot represent, and returns the
input itself if the two rates are equal; `BlockResampler` and `resample_blocks` do the same for a recording that
arrives in blocks, in memory of a few seconds. It does not know files, channels or models.
"""

import math
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asr_doge.errors import AudioError

SAMPLE_RATE = 16_000
"""Sampling rate of every waveform inside the package, in Hz."""
BELIEVABLE_RATES = range(1_000, 1_000_001)
"""Sampling rates, in Hz, that a recording can have."""


def checked_rate(rate: Any) -> int:
    """A sampling rate as a whole number.

    Raises:
        AudioError: it is not a number, or no recording has this rate.
    """
    try:
        whole = int(rate)
        if whole != rate or whole not in BELIEVABLE_RATES:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise AudioError(
            f"a sampling rate of {rate} Hz cannot be right: pass the rate that was recorded at, as in 44100"
        ) from None
    return whole


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


class BlockResampler:
    """Resamples a waveform block by block; its outputs concatenated equal `resample` of the whole waveform.

    Args:
        from_rate, to_rate: as in `resample`.
        least_seconds: least audio resampled at once; less means less delay and more work. The delay is never less than
            the filter's reach, which is below 2 ms between 8, 16, 24 and 48 kHz.
    """

    def __init__(self, from_rate: int, to_rate: int, least_seconds: float = 0.0) -> None:
        divisor = math.gcd(from_rate, to_rate)
        self._rates = from_rate, to_rate
        self._up, self._down = to_rate // divisor, from_rate // divisor
        # Only at multiples of `down` does an output sample fall on an input sample, so only there may the input be
        # cut. The filter reaches 10 * max(up, down) / up input samples to either side; that much is read again.
        self._reach = self._down * math.ceil((10 * max(self._up, self._down) / self._up + 1) / self._down)
        self._least = max(round(least_seconds * from_rate), 1)
        self._held = np.zeros(0, dtype=np.float32)
        self._before = 0  # samples at the start of `held` that are resampled, and kept as context of the filter

    def feed(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take more `[samples]`, of any number; returns the output that they complete, which may be empty."""
        if self._up == self._down:
            return block
        self._held = np.concatenate([self._held, block])
        ready = (self._held.size - self._before - self._reach) // self._down * self._down
        if ready < self._least:
            return np.zeros(0, dtype=np.float32)
        end = self._before + ready
        done = resample(self._held[: end + self._reach], *self._rates)[self._place(self._before) : self._place(end)]
        kept = max(end - self._reach, 0)
        self._held, self._before = self._held[kept:].copy(), end - kept
        return done

    def finish(self) -> NDArray[np.float32]:
        """The remaining output, `[samples]`."""
        if self._held.size <= self._before:
            return np.zeros(0, dtype=np.float32)
        return resample(self._held, *self._rates)[self._place(self._before) :]

    def _place(self, samples: int) -> int:
        return samples // self._down * self._up


def resample_blocks(
    blocks: Iterable[NDArray[np.float32]], from_rate: int, to_rate: int
) -> Iterator[NDArray[np.float32]]:
    """Resample a waveform that arrives in blocks; the joined results equal `resample` of the whole.

    Args:
        blocks: `[samples]` each, of any length.
        from_rate, to_rate: as in `resample`.
    """
    resampler = BlockResampler(from_rate, to_rate, least_seconds=1.0)
    for block in blocks:
        done = resampler.feed(block)
        if done.size:
            yield done
    left = resampler.finish()
    if left.size:
        yield left
