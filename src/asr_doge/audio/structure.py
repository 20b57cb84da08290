"""Find from a file's framing, before decoding, the recordings joined in it and whether it is truncated.

Promises: `parts_of` finds each of several recordings that were written one after the other into one file, by `cat`,
a radio stream or a chat program. It decodes no sound and uses no estimated lengths.
What it cannot detect: formats without such framing (AC-3, DTS, Monkey's Audio and others) are one part, truncated or
not.
"""

import mmap
from collections.abc import Callable
from functools import partial
from pathlib import Path

from asr_doge.audio import chunks, frames
from asr_doge.audio.parts import Data, Part, split

_Walk = tuple[Callable[[Data], bool], Callable[[Data], list[Part]]]
_WALKS: tuple[_Walk, ...] = (
    *(
        (is_start, partial(split, is_start=is_start, walk=walk))
        for is_start, walk in (
            (chunks.is_wave, chunks.walk_wave),
            (chunks.is_avi, chunks.walk_avi),
            (chunks.is_w64, chunks.walk_w64),
            (chunks.is_aiff, chunks.walk_aiff),
            (chunks.is_caf, chunks.walk_caf),
            (chunks.is_au, chunks.walk_au),
            (chunks.is_sphere, chunks.walk_sphere),
            (chunks.is_voc, chunks.walk_voc),
            (chunks.is_asf, chunks.walk_asf),
            (chunks.is_mp4, chunks.walk_mp4),
            (chunks.is_matroska, chunks.walk_matroska),
            (frames.is_flv, frames.walk_flv),
        )
    ),
    (frames.is_ogg, frames.walk_ogg),
    (frames.is_flac, frames.walk_flac),
    (frames.is_signed, frames.walk_signed),
    (frames.is_transport_stream, frames.walk_transport_stream),
    (frames.is_mpeg_audio, frames.walk_mpeg_audio),
    (frames.is_adts, frames.walk_adts),
)
"""For each format, how to detect it and how to find the parts of a file."""


def parts_of(path: Path) -> list[Part]:
    """The recordings in a non-empty file, in order; nearly all files have one."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for matches, walk in _WALKS:
            if matches(data):
                return walk(data)
        return [Part(0, len(data), container="mp3" if frames.has_mpeg_sync(data) else None)]
