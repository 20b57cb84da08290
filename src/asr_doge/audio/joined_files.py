"""Find from a file's framing, before decoding, the recordings joined in it and whether it is truncated.

Promises: `parts_of` finds each of several recordings that were written one after the other into one file, by `cat`,
a radio stream or a chat program. It decodes no sound and uses no estimated lengths.
What it cannot detect: formats without such framing (AC-3, DTS, Monkey's Audio and others) are one part, truncated or
not.
"""

import mmap
import re
from collections.abc import Callable
from pathlib import Path

from asr_doge.audio import chunked_formats, packet_formats
from asr_doge.audio.file_parts import Data, Part, split

_CHUNKED: tuple[tuple[re.Pattern[bytes], Callable[[Data, int], Part]], ...] = (
    (chunked_formats.WAVE, chunked_formats.walk_wave),
    (chunked_formats.AVI, chunked_formats.walk_avi),
    (chunked_formats.W64, chunked_formats.walk_w64),
    (chunked_formats.AIFF, chunked_formats.walk_aiff),
    (chunked_formats.CAF, chunked_formats.walk_caf),
    (chunked_formats.AU, chunked_formats.walk_au),
    (chunked_formats.SPHERE, chunked_formats.walk_sphere),
    (chunked_formats.VOC, chunked_formats.walk_voc),
    (chunked_formats.ASF, chunked_formats.walk_asf),
    (chunked_formats.MP4, chunked_formats.walk_mp4),
    (chunked_formats.MATROSKA, chunked_formats.walk_matroska),
    (packet_formats.FLV, packet_formats.walk_flv),
)
"""For each format, its first bytes, and the function that finds the part that starts at a place."""
_PACKETS: tuple[tuple[Callable[[Data], bool], Callable[[Data], list[Part]]], ...] = (
    (packet_formats.is_ogg, packet_formats.walk_ogg),
    (packet_formats.is_flac, packet_formats.walk_flac),
    (packet_formats.is_signed, packet_formats.walk_signed),
    (packet_formats.is_transport_stream, packet_formats.walk_transport_stream),
    (packet_formats.is_mpeg_audio, packet_formats.walk_mpeg_audio),
    (packet_formats.is_adts, packet_formats.walk_adts),
)
"""For each format, the functions that detect it and that find the parts of a file."""


def parts_of(path: Path) -> list[Part]:
    """The recordings in a non-empty file, in order; nearly all files have one."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for start, walk in _CHUNKED:
            if start.match(data):
                return split(data, chunked_formats.JOINED_MP4 if start is chunked_formats.MP4 else start, walk)
        for matches, walk_all in _PACKETS:
            if matches(data):
                return walk_all(data)
        return [Part(0, len(data), container="mp3" if packet_formats.has_mpeg_sync(data) else None)]
