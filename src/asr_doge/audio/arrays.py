"""Convert samples that a caller passes, as an array, a tensor or lists, to one mono waveform.

Promises: `prepare_waveform` gives float32 `[samples]` at the wanted rate, or one `AudioError` line that says what to
pass; `check_samples` refuses values that no recording has; `merge_short_blocks` joins short blocks. It reads no files.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from asr_doge.audio.channels import to_mono
from asr_doge.audio.resampling import SAMPLE_RATE, resample
from asr_doge.audio.sound import Note, log_note
from asr_doge.errors import AudioError

LARGEST_SAMPLE = 32.0
"""30 dB above full scale: loud floating-point recordings stay below, numbers on another scale do not."""


def prepare_waveform(
    array: ArrayLike,
    from_rate: int,
    to_rate: int = SAMPLE_RATE,
    name: str = "array",
    channel: int | None = None,
    on_note: Note = log_note,
) -> NDArray[np.float32]:
    """Check samples that a caller passes, and convert them to mono float32 at the wanted rate.

    Args:
        array: `[samples]`, `[channels, samples]` or `[samples, channels]` (the shorter axis is the channels; the first
            if equal): a NumPy array, a torch tensor on any device, or lists. Floats in about [-1, 1]; integers of 8, 16
            or 32 bits are scaled by their range.
        from_rate: rate of `array`, in Hz.
        to_rate: wanted rate, in Hz.
        name: name of the array in error messages and notes.
        channel: number of the channel to read, from 0; None for the mean of all.
        on_note: as in `asr_doge.audio.reading.read_audio`.

    Returns:
        `[samples]`, float32.

    Raises:
        AudioError: no samples, NaN or infinite samples, more than two axes, or a type or rate that no audio has.
    """
    if from_rate < 1:
        raise AudioError(f"{name} has a sampling rate of {from_rate} Hz: pass the rate it was recorded at.")
    planes = _to_planes(_to_numpy(array, name))
    mono = np.concatenate(list(to_mono([planes], from_rate, name, channel, on_note)))
    return resample(check_samples(mono, name), from_rate, to_rate)


def merge_short_blocks(blocks: Iterable[NDArray[np.float32]], samples: int) -> Iterator[NDArray[np.float32]]:
    """Merge consecutive blocks until each has at least `samples` samples; the last may be shorter.

    Decoders give a fraction of a second at a time, and every block costs calls and a wait for Python's lock. A block
    that is long enough is passed on as it is. If `blocks` raises an AudioError, the samples before it come first.
    """
    held: list[NDArray[np.float32]] = []
    try:
        for block in blocks:
            held.append(block)
            if sum(map(len, held)) >= samples:
                yield np.concatenate(held) if len(held) > 1 else block
                held = []
    except AudioError:
        yield from held and [np.concatenate(held)]
        raise
    yield from held and [np.concatenate(held)]


def check_samples(mono: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    """Return the samples `[samples]` unchanged if they are valid audio.

    Raises:
        AudioError: NaN, infinity, or values far above full scale.
    """
    # min and max propagate NaN and infinity, without a temporary array as long as the recording.
    low, high = float(mono.min()), float(mono.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise AudioError(f"{name} contains NaN or infinite samples: export it again.")
    if max(-low, high) > LARGEST_SAMPLE:
        raise AudioError(f"{name} has floating-point samples up to {max(-low, high):.0f}: scale them to [-1, 1].")
    return mono


def _to_numpy(array: Any, name: str) -> NDArray[Any]:
    if hasattr(array, "detach"):  # a torch tensor, perhaps on a GPU, with a gradient, or in bfloat16, which NumPy lacks
        array = array.detach().cpu()
        array = array.float() if array.is_floating_point() else array
    try:
        samples = np.asarray(array)
    except ValueError:
        raise AudioError(f"{name} has channels of different lengths: pass channels of equal length.") from None
    if samples.ndim not in (1, 2):
        raise AudioError(f"{name} has {samples.ndim} axes: pass [samples] or [channels, samples].")
    if samples.size == 0:
        raise AudioError(f"{name} holds no samples: record or export it again.")
    kind, size = samples.dtype.kind, samples.dtype.itemsize
    # Lists of integers arrive as 64 bits, which does not show their scale; a wrong guess would give silence.
    if kind != "f" and not (kind in "iu" and size <= 4):
        raise AudioError(f"{name} has samples of type {samples.dtype}: pass floats in [-1, 1], or int16.")
    return samples


def _to_planes(samples: NDArray[Any]) -> NDArray[np.float32]:
    """Channels `[channels, samples]`, full scale at 1, of one axis or two."""
    if samples.ndim == 1:
        samples = samples[None]
    elif samples.shape[0] > samples.shape[1]:
        samples = samples.T
    return to_floats(samples)


def to_floats(samples: NDArray[Any]) -> NDArray[np.float32]:
    """Samples of any type and shape as float32, full scale at 1."""
    if samples.dtype.kind == "f":
        with np.errstate(over="ignore"):  # the caller reports infinities
            return np.asarray(samples, dtype=np.float32)
    floats = samples.astype(np.float32)
    full_scale = np.float32(2.0 ** (8 * samples.dtype.itemsize - 1))
    if samples.dtype.kind == "u":
        floats -= full_scale
    floats /= full_scale
    return floats
