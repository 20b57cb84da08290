"""Long recordings into pieces that a model reads at once.

Promises: pieces of at most the given length that join up to the whole recording, each cut at the quietest moment near
its end.
It knows loudness only: it does not tell speech from other sound, and where nobody pauses a word may be cut.
"""

import numpy as np
from numpy.typing import NDArray

WINDOW_SECONDS = 0.1
SEARCH_SECONDS = 10.0
"""How far before the longest possible cut a quieter moment is looked for."""


def split_at_pauses(
    waveform: NDArray[np.float32], sampling_rate: int, max_seconds: float = 30.0
) -> list[NDArray[np.float32]]:
    """Cut a waveform into pieces.

    Args:
        waveform: `[samples]`.
        sampling_rate: in Hz.
        max_seconds: longest piece, in seconds.

    Returns:
        Views `[samples]` of the waveform, in order; together they are the whole of it.
    """
    longest = int(max_seconds * sampling_rate)
    search = min(int(SEARCH_SECONDS * sampling_rate), longest // 2)
    pieces = []
    start = 0
    while len(waveform) - start > longest:
        cut = (
            start
            + longest
            - search
            + _quietest_moment(waveform[start + longest - search : start + longest], sampling_rate)
        )
        pieces.append(waveform[start:cut])
        start = cut
    return [*pieces, waveform[start:]]


def _quietest_moment(waveform: NDArray[np.float32], sampling_rate: int) -> int:
    """Middle of the window of least energy, as a sample index."""
    window = int(WINDOW_SECONDS * sampling_rate)
    energy = np.concatenate([[0.0], np.cumsum(np.square(waveform, dtype=np.float64))])
    return int(np.argmin(energy[window:] - energy[:-window])) + window // 2
