"""Graphs are traced without garbage collections: each looks at all that the exporter has made so far."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collections() -> Iterator[None]:
    """Collect nothing meanwhile."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
