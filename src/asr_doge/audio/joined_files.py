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

from asr_doge.audio import chunked_formats, packet_formats
from asr_doge.audio.file_parts import Data, Part, split

_Walk = tuple[Callable[[Data], bool], Callable[[Data], list[Part]]]
_WALKS: tuple[_Walk, ...] = (
    *(
        (is_start, partial(split, is_start=is_start, walk=walk))
        for is_start, walk in (
            (chunked_formats.is_wave, chunked_formats.walk_wave),
            (chunked_formats.is_avi, chunked_formats.walk_avi),
            (chunked_formats.is_w64, chunked_formats.walk_w64),
            (chunked_formats.is_aiff, chunked_formats.walk_aiff),
            (chunked_formats.is_caf, chunked_formats.walk_caf),
            (chunked_formats.is_au, chunked_formats.walk_au),
            (chunked_formats.is_sphere, chunked_formats.walk_sphere),
            (chunked_formats.is_voc, chunked_formats.walk_voc),
            (chunked_formats.is_asf, chunked_formats.walk_asf),
            (chunked_formats.is_mp4, chunked_formats.walk_mp4),
            (chunked_formats.is_matroska, chunked_formats.walk_matroska),
            (packet_formats.is_flv, packet_formats.walk_flv),
        )
    ),
    (packet_formats.is_ogg, packet_formats.walk_ogg),
    (packet_formats.is_flac, packet_formats.walk_flac),
    (packet_formats.is_signed, packet_formats.walk_signed),
    (packet_formats.is_transport_stream, packet_formats.walk_transport_stream),
    (packet_formats.is_mpeg_audio, packet_formats.walk_mpeg_audio),
    (packet_formats.is_adts, packet_formats.walk_adts),
)
"""For each format, how to detect it and how to find the parts of a file."""


def parts_of(path: Path) -> list[Part]:
    """The recordings in a non-empty file, in order; nearly all files have one."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for matches, walk in _WALKS:
            if matches(data):
                return walk(data)
        return [Part(0, len(data), container="mp3" if packet_formats.has_mpeg_sync(data) else None)]
