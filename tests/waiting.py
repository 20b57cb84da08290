"""Waiting for other threads and processes."""

import time
from collections.abc import Callable

TIMEOUT_SECONDS = 180.0
"""However busy the machine."""


def until(is_so: Callable[[], bool], seconds: float = TIMEOUT_SECONDS) -> None:
    """Wait for something that happens elsewhere, but not for ever."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
