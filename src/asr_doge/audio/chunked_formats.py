"""Split files made of chunks that state their sizes: WAV, W64, AIFF, CAF, AU, SPHERE, VOC, AVI, ASF, MP4, Matroska.

Promises: a `Part` for each recording in such a file, with a fault if a chunk states more bytes than there are or, in
Matroska, its checksum is wrong. Placeholder sizes, written when the recorder did not know the size, count as unknown.
Sources: the formats' specifications (RIFF and RF64: EBU Tech 3306; W64: Sony; AIFF and CAF: Apple; ASF: Microsoft;
ISO/IEC 14496-12; RFC 8794 and RFC 9559). It decodes nothing.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from asr_doge.audio.file_parts import Data, Part

# A recorder that writes to a pipe cannot know the length, and writes one of the largest numbers instead.
_UNKNOWN_BYTES = 0x7FFF0000
_MPEG_IN_WAVE = (b"\x50\x00", b"\x55\x00")
"""Formats of a WAV file that holds MP2 or MP3, of which libsndfile believes the stated length."""
_W64_RIFF = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
_EBML, _SEGMENT, _CLUSTER = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"

# What a file begins with, wherever in the data it starts.
WAVE = re.compile(rb"(?:RIFF|RF64|BW64).{4}WAVE", re.DOTALL)
AVI = re.compile(rb"RIFF.{4}AVI ", re.DOTALL)
"""A file of more than 1 GB continues in further RIFF chunks, called AVIX."""
W64 = re.compile(re.escape(_W64_RIFF))
AIFF = re.compile(rb"FORM.{4}AIF[FC]", re.DOTALL)
CAF = re.compile(rb"caff\x00\x01\x00\x00")
AU = re.compile(rb"\.snd.{20}", re.DOTALL)
SPHERE = re.compile(rb"NIST_1A\n")
VOC = re.compile(rb"Creative Voice File\x1a.{6}", re.DOTALL)
ASF = re.compile(re.escape(_ASF_HEADER))
MP4 = re.compile(rb".{4}(?:ftyp|moov|mdat|free|skip|wide|pnot|styp|moof|sidx|uuid|meta)", re.DOTALL)
JOINED_MP4 = re.compile(rb".{4}ftyp", re.DOTALL)
"""An MP4, MOV or 3GP file that follows another."""
MATROSKA = re.compile(re.escape(_EBML))


@dataclass(frozen=True)
class _Layout:
    """How the chunks of a format begin: an id, then a size."""

    id_bytes: int
    size: str
    size_counts_header: bool = False
    alignment: int = 1


_RIFF, _FORM = _Layout(4, "<I", alignment=2), _Layout(4, ">I", alignment=2)
_CAF, _W64, _ASF = _Layout(4, ">q"), _Layout(16, "<Q", True, 8), _Layout(16, "<Q", True)


def _chunks(data: Data, place: int, layout: _Layout) -> Iterator[tuple[bytes, int, int]]:
    """Id, start of the content and stated size of each chunk, starting at `place`."""
    header = layout.id_bytes + struct.calcsize(layout.size)
    while place + header <= len(data):
        (size,) = struct.unpack_from(layout.size, data, place + layout.id_bytes)
        content = place + header
        if layout.size_counts_header:
            size -= header
        yield bytes(data[place : place + layout.id_bytes]), content, size
        if size < 0:
            return
        place = content + size + -(content + size) % layout.alignment


def _of_samples(data: Data, start: int, content: int, size: int) -> Part:
    """A part whose header states `size` bytes of samples from `content` on."""
    held = len(data) - content
    if size <= held:
        return Part(start, content + size)
    return Part(start, len(data), stated=size / held if held else 1.0, fault=None if held else "it breaks off at once")


def walk_wave(data: Data, start: int) -> Part:
    """The WAV, RF64 or BW64 file that starts here, including the chunks after its samples."""
    part = _wave_part(data, start)
    formats = (
        bytes(data[content : content + 2]) for name, content, _ in _chunks(data, start + 12, _RIFF) if name == b"fmt "
    )
    return replace(part, container="wav") if next(formats, b"") in _MPEG_IN_WAVE else part


def _wave_part(data: Data, start: int) -> Part:
    wide_size = None
    part = None
    for name, content, size in _chunks(data, start + 12, _RIFF):
        place = content - 8
        if part is None and name == b"ds64":
            (wide_size,) = struct.unpack_from("<Q", data, content + 8)
        elif part is None and name == b"data":
            if size == 0xFFFFFFFF and wide_size is not None:
                part = _of_samples(data, start, content, wide_size)
            elif size >= _UNKNOWN_BYTES or size == 0:
                return Part(start, _next_wave(data, content))
            else:
                part = _of_samples(data, start, content, size)
            if size == 0xFFFFFFFF or part.end == len(data):
                break  # the chunk's size cannot be used to find the next
        elif part is not None:
            for seam in (place, place - 1):  # not all writers pad samples of odd length
                if WAVE.match(data, seam):
                    return replace(part, end=seam)
            if not name.isascii() or content + size > len(data):
                break
    return part or Part(start, len(data))


def _next_wave(data: Data, place: int) -> int:
    """Start of the next WAV file after samples of unknown length."""
    while (place := data.find(b"WAVEfmt ", place)) >= 0:
        if WAVE.match(data, place - 8):
            return place - 8
        place += 1
    return len(data)


def walk_avi(data: Data, start: int) -> Part:
    """The AVI file that starts here."""
    for name, content, size in _chunks(data, start, _RIFF):
        place = content - 8
        if name != b"RIFF" or (place > start and AVI.match(data, place)):
            return Part(start, place)
        if size == 0 or size >= _UNKNOWN_BYTES:  # never finished: its index is missing too
            break
        if content + size > len(data):
            return Part(start, len(data), _missing(content + size - len(data)))
    return Part(start, len(data))


def walk_w64(data: Data, start: int) -> Part:
    """The W64 file that starts here."""
    part = None
    for name, content, size in _chunks(data, start + 40, _W64):
        if name == _W64_RIFF:
            return replace(part or Part(start, start), end=content - 24)
        if part is None and name[:4] == b"data":
            if size < 0 or size >= 1 << 62:
                break
            part = _of_samples(data, start, content, size)
    return replace(part, end=len(data)) if part else Part(start, len(data))


def walk_aiff(data: Data, start: int) -> Part:
    """The AIFF or AIFF-C file that starts here."""
    part = None
    for name, content, size in _chunks(data, start + 12, _FORM):
        if name == b"FORM":
            return replace(part or Part(start, start), end=content - 8)
        if name == b"SSND" and 0 < size < _UNKNOWN_BYTES:
            part = _of_samples(data, start, content, size)
    return replace(part, end=len(data)) if part else Part(start, len(data))


def walk_caf(data: Data, start: int) -> Part:
    """The CAF file that starts here."""
    part = None
    for name, content, size in _chunks(data, start + 8, _CAF):
        if CAF.match(data, content - 12):
            return replace(part or Part(start, start), end=content - 12)
        if name == b"data" and size >= 0:
            part = _of_samples(data, start, content, size)
    return replace(part, end=len(data)) if part else Part(start, len(data))


def walk_au(data: Data, start: int) -> Part:
    """The AU file that starts here."""
    offset, size = struct.unpack_from(">II", data, start + 4)
    return Part(start, len(data)) if size >= _UNKNOWN_BYTES else _of_samples(data, start, start + offset, size)


def walk_sphere(data: Data, start: int) -> Part:
    """The SPHERE file that starts here."""
    header = data[start : start + 1024]
    fields = {name: int(number) for name, number in re.findall(rb"^(\w+) -i (\d+)", header, re.MULTILINE)}
    size = fields.get(b"sample_count", 0) * fields.get(b"sample_n_bytes", 0) * fields.get(b"channel_count", 1)
    if not size or b"shorten" in header:
        return Part(start, len(data))
    return _of_samples(data, start, start + int(header[8:16]), size)


def walk_voc(data: Data, start: int) -> Part:
    """The Creative Voice file that starts here: blocks, each of a type and a size, up to one of type 0."""
    place = start + max(int.from_bytes(data[start + 20 : start + 22], "little"), 26)  # the least that a header has
    while place < len(data) and not VOC.match(data, place):
        if data[place] == 0:
            return Part(start, place + 1, container="voc")
        place += 4 + int.from_bytes(data[place + 1 : place + 4], "little")
    missing = _missing(place - len(data)) if place > len(data) else None
    return Part(start, min(place, len(data)), missing, container="voc")


def walk_asf(data: Data, start: int) -> Part:
    """The ASF file that starts here."""
    for name, content, size in _chunks(data, start, _ASF):
        place = content - 24
        if name == _ASF_HEADER and place > start:
            return Part(start, place)
        if name == _ASF_DATA and size > 26 and content + size > len(data):  # a live stream states no size
            return Part(start, len(data), _missing(content + size - len(data)))
    return Part(start, len(data))


def walk_mp4(data: Data, start: int) -> Part:
    """The MP4, MOV or 3GP file that starts here."""
    place = start
    while place + 8 <= len(data):
        (size,) = struct.unpack_from(">I", data, place)
        if size == 1 and place + 16 <= len(data):
            (size,) = struct.unpack_from(">Q", data, place + 8)
        if place > start and JOINED_MP4.match(data, place):
            return Part(start, place)
        if size < 8:  # 0: to the end of the file
            break
        if place + size > len(data):
            return Part(start, len(data), _missing(place + size - len(data)))
        place += size
    return Part(start, len(data))


_INFO, _TIME_SCALE, _DURATION = b"\x15\x49\xa9\x66", b"\x2a\xd7\xb1", b"\x44\x89"
_ENTERED = (_SEGMENT, _CLUSTER, _INFO)


def walk_matroska(data: Data, start: int) -> Part:
    """The Matroska or WebM file that starts here; its duration is from time 0 to the end of the longest track."""
    place, scale, duration, fault = start, 1e6, None, None
    while place < len(data):
        element = _element(data, place)
        if element is None:  # damaged: continue at the next cluster, as decoders do
            fault = fault or "its structure is damaged"
            place = data.find(_CLUSTER, place + 1)
            if place < 0:
                break
            continue
        name, content, size = element
        if name == _EBML and place > start:
            return Part(start, place, fault, seconds=duration and duration * scale / 1e9)
        if size is not None and content + size > len(data):
            fault = fault or _missing(content + size - len(data))
        if name == _TIME_SCALE and size:
            scale = float(int.from_bytes(data[content : content + size], "big"))
        elif name == _DURATION and size in (4, 8):
            (duration,) = struct.unpack(">f" if size == 4 else ">d", data[content : content + size])
        elif name == _CLUSTER and size is not None and not _checksum_holds(data[content : content + size]):
            fault = fault or "a checksum in it does not hold"
        enters = name in _ENTERED and not (name == _CLUSTER and size is not None)
        place = content if enters or size is None else content + size
    return Part(start, len(data), fault, seconds=duration and duration * scale / 1e9)


def _element(data: Data, place: int) -> tuple[bytes, int, int | None] | None:
    """Id, start of the content and size (None: unknown) of an EBML element; None where there is none."""
    id_bytes = _vint_bytes(data, place)
    if not 1 <= id_bytes <= 4:
        return None
    size_bytes = _vint_bytes(data, place + id_bytes)
    if not 1 <= size_bytes <= 8:
        return None
    content = place + id_bytes + size_bytes
    size = int.from_bytes(data[place + id_bytes : content], "big") & ((1 << 7 * size_bytes) - 1)
    is_unknown = size == (1 << 7 * size_bytes) - 1
    return bytes(data[place : place + id_bytes]), content, None if is_unknown else size


def _vint_bytes(data: Data, place: int) -> int:
    """Length of a variable-size integer, from its first byte; 9 for a byte that begins none."""
    return 9 - data[place].bit_length() if place < len(data) else 9


def _checksum_holds(cluster: bytes) -> bool:
    """Whether the CRC-32 at the start of a cluster, if there is one, matches the rest."""
    return cluster[:2] != b"\xbf\x84" or zlib.crc32(cluster[6:]) == int.from_bytes(cluster[2:6], "little")


def _missing(count: int) -> str:
    return f"{count} bytes are missing at its end"
