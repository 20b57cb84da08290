"""A chunk without its samples, as bytes for another process.

Promises: what `unpack_header` gives equals the chunk that was packed, its numbers bit for bit. It does not know how the
samples travel.
"""

import struct

import numpy as np
from numpy.typing import NDArray

from asr_doge.inference.chunking import Chunk

_HEADER = struct.Struct("<ddddd???")
HEADER_BYTES = _HEADER.size


def pack_header(chunk: Chunk) -> bytes:
    """`HEADER_BYTES` bytes."""
    start, end = chunk.speech or (0.0, 0.0)
    overlaps = chunk.overlap_before, chunk.overlap_after
    return _HEADER.pack(chunk.start, start, end, *overlaps, chunk.speech is not None, chunk.is_gap, chunk.is_uncut)


def unpack_header(content: bytes, samples: NDArray[np.float32]) -> Chunk:
    """The chunk whose header these bytes begin with, of these `[samples]`."""
    start, *speech, before, after, has_speech, is_gap, is_uncut = _HEADER.unpack_from(content)
    return Chunk(samples, start, tuple(speech) if has_speech else None, before, after, is_gap, is_uncut)
