"""What the framing of a file tells before anything is decoded: the recordings joined in it, and whether it ends early.

Promises: `parts_of` finds each of several recordings that were written one behind the other into one file, with
`cat`, by a radio stream or by a chat program. It decodes no sound and trusts no guess.
What it cannot tell: formats without such framing (AC-3, DTS, Monkey's Audio and others) are one part, cut or not.
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
"""How to tell each format, and how to find the parts of a file in it."""


def parts_of(path: Path) -> list[Part]:
    """The recordings in a file that is not empty, in order: one, for nearly all files."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for matches, walk in _WALKS:
            if matches(data):
                return walk(data)
        return [Part(0, len(data))]
