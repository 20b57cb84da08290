"""The type that the readers of recordings exchange: a stretch of decoded sound.

It has no logic, and does not know which reader made it or how it is used.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Note = Callable[[str], None]
"""Takes one line about a recording that was read but is unusual in some way."""

log_note: Note = logging.getLogger("asr_doge.audio").warning
"""The default: Python shows it on stderr unless the caller's logging says otherwise."""


@dataclass(frozen=True)
class Sound:
    """A stretch of a recording.

    Attributes:
        planes: `[channels, samples]`, float32, full scale at 1.
        rate: in Hz.
        start: when it begins on the clock of its file, in seconds; None where the format has no clock.
    """

    planes: NDArray[np.float32]
    rate: int
    start: float | None = None

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.planes.shape[1] / self.rate
