"""Mix several channels into one.

Promises: the result is the mean of the channels, or one of them, `[samples]`. If the mean is far below the loudest
channel, because opposite phases cancel or most channels are silent, that channel replaces the mean for a second at a
time, and one note says so. How the samples arrive changes nothing, and memory is that of a second. It does not know
files.
"""

from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from asr_doge.audio.sound import Note
from asr_doge.errors import AudioError

Channels = Literal["mix", "left", "right", "each"]
CANCELLED_DECIBELS = 12.0
"""A mean this far below the loudest channel has lost its content. With two channels, one of them silent: 6 dB."""
STAYS_DECIBELS = 3.0
"""The previously chosen channel stays while it is within this of the loudest, since switching may click."""
_SILENT_POWER = 1e-10


def to_mono(
    blocks: Iterable[NDArray[np.float32]], rate: int, name: str, channel: int | None, on_note: Note
) -> Iterator[NDArray[np.float32]]:
    """Reduce blocks `[channels, samples]`, which all have the same number of channels, to one channel.

    Args:
        blocks: the samples.
        rate: their rate in Hz.
        name: name of the recording, for notes and errors.
        channel: number of a channel, from 0; None for the mean of all.
        on_note: called if a channel replaces the mean.

    Raises:
        AudioError: there is no such channel.
    """
    if channel is not None:
        yield from (_channel(planes, channel, name) for planes in blocks)
        return
    mixer = _Mixer(name, on_note)
    for window in _seconds_of(blocks, rate):
        yield mixer.mix(window)


def _channel(planes: NDArray[np.float32], channel: int, name: str) -> NDArray[np.float32]:
    if channel >= len(planes):
        count = "one channel" if len(planes) == 1 else f"{len(planes)} channels"
        raise AudioError(f"{name} has {count}, and no channel {channel + 1}: choose another with --channels.")
    return np.ascontiguousarray(planes[channel])


def _seconds_of(blocks: Iterable[NDArray[np.float32]], rate: int) -> Iterator[NDArray[np.float32]]:
    """The same samples in windows of a second; a single channel is passed on unchanged."""
    held: list[NDArray[np.float32]] = []
    count = 0
    for block in blocks:
        if len(block) == 1:
            yield block
            continue
        held.append(block)
        count += block.shape[1]
        if count < rate:
            continue
        joined = np.concatenate(held, axis=1)
        whole = count // rate * rate
        for start in range(0, whole, rate):
            yield joined[:, start : start + rate]
        held, count = [joined[:, whole:].copy()], count - whole
    if count:
        yield np.concatenate(held, axis=1)


class _Mixer:
    """Mixes windows `[channels, samples]` in turn."""

    def __init__(self, name: str, on_note: Note) -> None:
        self._name, self._on_note = name, on_note
        self._chosen: int | None = None

    def mix(self, planes: NDArray[np.float32]) -> NDArray[np.float32]:
        if len(planes) == 1:
            return np.ascontiguousarray(planes[0])
        with np.errstate(over="ignore", invalid="ignore"):  # NaN and infinity are reported by the check of the result
            mean = planes.mean(axis=0)
            powers = planes.var(axis=1)  # not the mean square: a constant offset is not sound
            power = float(mean.var())
        loudest = float(powers.max())
        if not (loudest > _SILENT_POWER and power < loudest / 10 ** (CANCELLED_DECIBELS / 10)):
            return mean
        if self._chosen is None or powers[self._chosen] < loudest / 10 ** (STAYS_DECIBELS / 10):
            is_first = self._chosen is None
            self._chosen = int(np.argmax(powers > 0.99 * loudest))  # the first among equals
            if is_first:
                self._on_note(
                    f"{self._name}: the mean of its {len(planes)} channels is far below channel {self._chosen + 1}, as"
                    " opposite phases cancel out or the others are silent; the loudest channel is read alone there"
                )
        return np.ascontiguousarray(planes[self._chosen])
