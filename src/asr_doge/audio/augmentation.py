"""Vary recordings so that a model does not depend on microphone, room or loudness.

Promises: every function draws only from the generator it is given (same generator state, same result); those of
waveforms do not modify their input, return float32 and keep silence silent. It does not know transcripts, files or
models, and does not limit peaks: a raised level may exceed 1, which does not affect log-mel features.
"""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from asr_doge.audio.resampling import resample
from asr_doge.errors import ConfigError

if TYPE_CHECKING:  # this package is also imported for settings and help, which torch would slow down
    from torch import Tensor

_TELEPHONE_RATE = 8_000
# In cycles per sample: 50 Hz at 16 kHz. Coloured noise has a flat spectrum below it; otherwise most of its power would
# be at frequencies that no microphone records, and a "5 dB" brown noise would be inaudible.
_NOISE_CORNER = 1 / 320
_DIRECT_TO_REVERBERANT = 2.0  # ratio of energies, 3 dB: a speaker at about arm's length in a room
_SECONDS_TO_FIRST_ECHO = 0.003  # a wall half a metre away


def change_speed(waveform: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """Play faster (`factor` above 1) or slower; the pitch changes too, as with a tape.

    Args:
        waveform: `[samples]`, float32.
        factor: speed, at least 0.01, rounded to the nearest hundredth.

    Returns:
        `[ceil(samples / factor)]`, float32.
    """
    return resample(waveform, round(100 * factor), 100)


def scale_level(waveform: NDArray[np.float32], gain_db: float) -> NDArray[np.float32]:
    """Make `waveform`, `[samples]`, louder by `gain_db` dB (quieter below 0)."""
    return waveform * np.float32(10 ** (gain_db / 20))


def add_noise(
    waveform: NDArray[np.float32], snr_db: float, rng: np.random.Generator, exponent: float = 0.0
) -> NDArray[np.float32]:
    """Add steady noise at a signal-to-noise ratio measured over the whole clip.

    Args:
        waveform: `[samples]`, float32.
        snr_db: power of the clip over power of the noise, in dB.
        rng: source of randomness.
        exponent: colour; the noise's power falls as 1 / frequency ** exponent: 0 white, 1 pink, 2 brown.

    Returns:
        `[samples]`, float32. A silent clip is returned silent, since it has no signal-to-noise ratio.
    """
    signal_power = _power(waveform)
    if signal_power == 0.0:
        return waveform
    noise = _coloured_noise(waveform.size, exponent, rng)
    noise_power = _power(noise)
    if noise_power == 0.0:  # a clip of one sample can carry no noise
        return waveform
    wanted_power = signal_power / 10 ** (snr_db / 10)
    return waveform + noise * np.float32((wanted_power / noise_power) ** 0.5)


def telephone_band(waveform: NDArray[np.float32], sampling_rate: int) -> NDArray[np.float32]:
    """Resample `waveform`, `[samples]` at `sampling_rate` Hz, to 8 kHz and back: frequencies above 4 kHz are lost."""
    if sampling_rate <= _TELEPHONE_RATE:
        return waveform
    narrow = resample(waveform, sampling_rate, _TELEPHONE_RATE)
    return resample(narrow, _TELEPHONE_RATE, sampling_rate)[: waveform.size]


def reverberate(
    waveform: NDArray[np.float32], sampling_rate: int, rt60_seconds: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Simulate a room: the direct sound, then echoes that decay exponentially.

    Args:
        waveform: `[samples]`, float32.
        sampling_rate: of `waveform`, in Hz.
        rt60_seconds: time in which the echoes decay by 60 dB; 0.2 a furnished room, 0.8 a hall.
        rng: source of randomness.

    Returns:
        `[samples]`, float32, with the mean power of the input; the last echoes are cut off.
    """
    power = _power(waveform)
    if power == 0.0:
        return waveform
    from scipy.signal import fftconvolve  # here: slow to import, needed only in training

    response = _room_response(sampling_rate, rt60_seconds, rng)
    wet = fftconvolve(waveform, response)[: waveform.size]
    wet_power = _power(wet)
    if wet_power == 0.0:  # a sound so faint that the transform rounds it to zero
        return waveform
    return np.asarray(wet * (power / wet_power) ** 0.5, dtype=np.float32)


@dataclass(frozen=True)
class Augmentation:
    """Random changes with their probabilities and ranges; call it on a clip to get a varied copy.

    The order is that of a real recording: the speaker, the room, the noise in the room, the line, the recorder's level.
    """

    speed_probability: float = 0.5
    """Share of clips played at another speed."""
    speed: tuple[float, float] = (0.9, 1.1)
    """Slowest and fastest speed factor."""
    reverberation_probability: float = 0.2
    """Share of clips with a simulated room."""
    rt60_seconds: tuple[float, float] = (0.1, 0.6)
    """Driest and most echoing room: seconds until its echoes have decayed by 60 dB."""
    noise_probability: float = 0.5
    """Share of clips with noise."""
    snr_db: tuple[float, float] = (5.0, 30.0)
    """Worst and best signal-to-noise ratio, in dB."""
    noise_exponent: tuple[float, float] = (0.0, 2.0)
    """Range of the noise's colour, from white (0) over pink (1) to brown (2)."""
    telephone_probability: float = 0.1
    """Share of clips limited to the telephone's 4 kHz."""
    gain_probability: float = 1.0
    """Share of clips with another level."""
    gain_db: tuple[float, float] = (-20.0, 6.0)
    """Quietest and loudest level relative to the clip's own, in dB."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_probability"):
                if not 0.0 <= value <= 1.0:
                    raise ConfigError(f"Augmentation.{field.name} is {value}: choose a share from 0 to 1.")
            elif not value[0] <= value[1]:
                raise ConfigError(f"Augmentation.{field.name} is {value}: put the lower bound first.")
        for name, lowest in {"speed": 0.01, "rt60_seconds": 0.01}.items():
            if getattr(self, name)[0] < lowest:
                raise ConfigError(
                    f"Augmentation.{name} starts at {getattr(self, name)[0]}: start at {lowest} or above."
                )

    def __call__(
        self,
        waveform: NDArray[np.float32],
        sampling_rate: int,
        rng: np.random.Generator,
        longest: int | None = None,
    ) -> NDArray[np.float32]:
        """Vary one clip.

        Args:
            waveform: `[samples]`, float32.
            sampling_rate: of `waveform`, in Hz.
            rng: source of randomness; the same state gives the same result.
            longest: samples the result may have; a clip that would become longer keeps its speed.

        Returns:
            `[other samples]`, float32: the length depends on the speed. The input itself if no change was drawn.
        """
        if rng.random() < self.speed_probability:
            other_speed = change_speed(waveform, rng.uniform(*self.speed))
            waveform = other_speed if longest is None or len(other_speed) <= longest else waveform
        if rng.random() < self.reverberation_probability:
            waveform = reverberate(waveform, sampling_rate, rng.uniform(*self.rt60_seconds), rng)
        if rng.random() < self.noise_probability:
            waveform = add_noise(waveform, rng.uniform(*self.snr_db), rng, rng.uniform(*self.noise_exponent))
        if rng.random() < self.telephone_probability:
            waveform = telephone_band(waveform, sampling_rate)
        if rng.random() < self.gain_probability:
            waveform = scale_level(waveform, rng.uniform(*self.gain_db))
        return waveform


def mask_features(features: "Tensor", rng: np.random.Generator, frame_stack: int = 2) -> "Tensor":
    """Mask two bands of frequencies and two stretches of time (SpecAugment, https://arxiv.org/abs/1904.08779).

    Args:
        features: `[T, F]`, changed in place; every row is `frame_stack` frames of `F / frame_stack` mel bands.
        rng: source of the masks: up to 12 bands and 6 rows each.
        frame_stack: see `features`.
    """
    bands = features.shape[1] // frame_stack
    for _ in range(2):
        width, moment = int(rng.integers(0, 13)), int(rng.integers(0, 7))
        band = int(rng.integers(0, bands - width))
        start = int(rng.integers(0, max(1, len(features) - moment)))
        for first in range(band, features.shape[1], bands):
            features[:, first : first + width] = 0.0
        features[start : start + moment] = 0.0
    return features


def _power(waveform: NDArray[np.float32]) -> float:
    """Mean square; 0 for no samples. Summed in float64, so that faint sounds do not round to zero."""
    return float(np.square(waveform, dtype=np.float64).mean()) if waveform.size else 0.0


def _coloured_noise(samples: int, exponent: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Noise `[samples]` of arbitrary level, drawn in the spectrum so that one transform is enough."""
    from scipy.fft import irfft, next_fast_len  # here: slow to import; stays in float32

    length = next_fast_len(samples, real=True)  # a prime length would cost many times as much
    bins = length // 2 + 1
    frequencies = np.arange(bins, dtype=np.float32) / np.float32(length)
    amplitudes = np.maximum(frequencies, np.float32(_NOISE_CORNER)) ** np.float32(-exponent / 2)
    amplitudes[0] = 0.0  # no constant offset
    spectrum = rng.standard_normal(2 * bins, dtype=np.float32).view(np.complex64) * amplitudes
    return np.asarray(irfft(spectrum, n=length)[:samples], dtype=np.float32)


def _room_response(sampling_rate: int, rt60_seconds: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Impulse response `[rt60_seconds * sampling_rate]`: the direct sound of 1, a gap, decaying noise."""
    seconds = np.arange(max(1, round(rt60_seconds * sampling_rate)), dtype=np.float32) / sampling_rate
    echoes = rng.standard_normal(seconds.size, dtype=np.float32) * np.float32(10) ** (-3 * seconds / rt60_seconds)
    echoes[seconds < _SECONDS_TO_FIRST_ECHO] = 0.0
    energy = float(np.square(echoes).sum())
    if energy > 0.0:
        echoes *= (1 / (_DIRECT_TO_REVERBERANT * energy)) ** 0.5
    echoes[0] = 1.0
    return np.asarray(echoes, dtype=np.float32)
