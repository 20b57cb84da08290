"""What the readers of recordings hand to each other: a stretch of decoded sound.

It holds no logic; which reader made it, and what becomes of it, it does not know.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Note = Callable[[str], None]
"""Takes one line about a recording that was read, though not all in it was as one would expect."""

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
