"""Split files made of packets, pages or frames: Ogg, FLAC, MP3, AAC, FLV, MPEG transport streams and others.

Promises: a `Part` for each recording in such a file. An Ogg file that is truncated, lacks its last page, or has a page
with a wrong checksum has a fault, and so has a truncated FLV file or transport stream. If MP3 or AAC changes its rate
or channels a new part begins, since decoders lose sound there.
Sources: RFC 3533 (Ogg), RFC 9639 (FLAC), ISO/IEC 11172-3 and 13818-7 (MP3, AAC), RFC 4867 (AMR). It decodes nothing.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator

from asr_doge.audio.file_parts import Data, Part

FLV = re.compile(rb"FLV\x01.\x00\x00\x00\x09", re.DOTALL)
_FLAC = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")


def _bytes_with(bit: int) -> bytes:
    """A pattern that matches a byte in which a bit is set."""
    return b"[" + b"".join(b"\\x%02x" % byte for byte in range(256) if byte & bit) + b"]"


_SIGNATURES = {
    "amr": re.compile(rb"#!AMR(?:-WB)?(?:_MC1\.0)?\n"),
    "tta": re.compile(rb"TTA1[\x01\x02]\x00[\x01-\x08]\x00"),
    "nut": re.compile(rb"nut/multimedia container\x00"),
    # A block whose samples are numbered from 0, and the first of those of several channels.
    "wv": re.compile(rb"wvpk.{4}[\x02-\x10]\x04.{6}\x00{4}.{5}" + _bytes_with(0x08), re.DOTALL),
    "voc": re.compile(rb"Creative Voice File\x1a"),
}
_BITS_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_TRANSPORT_PACKETS = (188, 192, 204)
_TAG = re.compile(rb"ID3|TAG|APETAGEX|LYRICSBEGIN")
_MOST_JUNK = 2048
"""Number of bytes between frames up to which they are not a sign of damage."""
_LAYER_3 = 1


def is_ogg(data: Data) -> bool:
    """Whether the file is Ogg."""
    return data[:4] == b"OggS"


def walk_ogg(data: Data) -> list[Part]:
    """The links of an Ogg file: each begins with the first pages of its streams."""
    parts: list[Part] = []
    start = place = latest = 0
    running: set[bytes] = set()
    has_data, fault = False, None
    while place < len(data):
        if data[place : place + 4] != b"OggS":
            fault = fault or "a page of it is damaged or missing"
            place = latest = data.find(b"OggS", latest + 4)
            if place < 0:
                break
            continue
        segments = data[place + 27 : place + 27 + (data[place + 26] if place + 27 <= len(data) else 255)]
        end = place + 27 + len(segments) + sum(segments)
        if place + 27 > len(data) or len(segments) < data[place + 26] or end > len(data):
            following = data.find(b"OggS", place + 4)
            fault = fault or ("it breaks off within a page" if following < 0 else "a page of it is damaged or missing")
            if following < 0:
                break
            place = latest = following
            continue
        flags, serial = data[place + 5], bytes(data[place + 14 : place + 18])
        if flags & 2 and has_data:
            parts.append(Part(start, place, fault, container="ogg"))
            start, running, has_data, fault = place, set(), False, None
        if not _ogg_checksum_holds(data[place:end]):
            fault = fault or "a checksum in it does not hold"
            place = latest = data.find(b"OggS", place + 4)  # the length it states may be wrong too
            if place < 0:
                break
            continue
        has_data = has_data or not flags & 2
        running = running - {serial} if flags & 4 else running | {serial}
        place, latest = end, place
    if running:
        fault = fault or "its last page is missing"
    return [*parts, Part(start, len(data), fault, container="ogg")]


def _ogg_checksum_holds(page: bytes) -> bool:
    """Ogg's CRC is zlib's with the bits of each byte and of the result reversed, and a start value of 0."""
    stated = int.from_bytes(page[22:26], "little")
    blank = page[:22] + bytes(4) + page[26:]
    crc = zlib.crc32(blank.translate(_BITS_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return stated == int(f"{crc:032b}"[::-1], 2)


def is_flac(data: Data) -> bool:
    """Whether the file is FLAC, possibly after an ID3 tag."""
    return data[(place := after_id3(data, 0)) : place + 4] == b"fLaC"


def walk_flac(data: Data) -> list[Part]:
    """FLAC files, each with the duration that its header states."""
    parts = []
    for start, end in _between([found.start() for found in _FLAC.finditer(data)], data):
        head = data[start : start + 42] if start else data[(after := after_id3(data, 0)) : after + 42]
        if len(head) < 42:
            continue
        packed = int.from_bytes(head[18:26], "big")
        rate, samples = packed >> 44, packed & ((1 << 36) - 1)
        parts.append(Part(start, end, seconds=samples / rate if rate and samples else None, container="flac"))
    return parts


def is_signed(data: Data) -> bool:
    """Whether the file is AMR, TTA, NUT, WavPack or VOC."""
    return any(signature.match(data) for signature in _SIGNATURES.values())


def walk_signed(data: Data) -> list[Part]:
    """Files of a format whose signature occurs nowhere else in them."""
    container, signature = next(item for item in _SIGNATURES.items() if item[1].match(data))
    starts = [found.start() for found in signature.finditer(data)]
    return [Part(start, end, container=container) for start, end in _between(starts, data)]


def _between(starts: list[int], data: Data) -> Iterator[tuple[int, int]]:
    """Ranges that begin at these places; the first begins with the file."""
    starts = [0, *starts[1:]]
    return zip(starts, [*starts[1:], len(data)], strict=True)


def walk_flv(data: Data, start: int) -> Part:
    """The FLV file that starts here."""
    place = start + 13
    while place + 11 <= len(data):
        if FLV.match(data, place):
            return Part(start, place)
        place += 11 + int.from_bytes(data[place + 1 : place + 4], "big") + 4
    return Part(start, len(data), "it breaks off within a tag" if place > len(data) else None)


def is_transport_stream(data: Data) -> bool:
    """Whether the file is an MPEG transport stream, with or without the time codes of M2TS."""
    return _transport_packet(data) is not None


def walk_transport_stream(data: Data) -> list[Part]:
    """One part, since the clock shows where streams were joined."""
    packet = _transport_packet(data)
    is_cut = packet is not None and len(data) % packet
    return [Part(0, len(data), "it breaks off within a packet" if is_cut else None)]


def _transport_packet(data: Data) -> int | None:
    for size in _TRANSPORT_PACKETS:
        first = 4 if size == 192 else 0
        if len(data) > 2 * size and data[first] == data[first + size] == 0x47:
            return size
    return None


def after_id3(data: Data, place: int) -> int:
    """The place after ID3v2 tags."""
    while data[place : place + 3] == b"ID3" and place + 10 <= len(data):
        size = 0
        for byte in data[place + 6 : place + 10]:
            size = size << 7 | byte & 0x7F
        place += 10 + size + (10 if data[place + 5] & 0x10 else 0)
    return place


def is_mpeg_audio(data: Data) -> bool:
    """Whether the file is MP3 or MP2, possibly after an ID3 tag: two frames in a row."""
    return _starts_with(data, _mpeg_frame)


def has_mpeg_sync(data: Data) -> bool:
    """Whether the file begins like a frame of MP3, possibly after an ID3 tag, whether it is one or not."""
    head = data[(place := after_id3(data, 0)) : place + 2]
    return len(head) == 2 and head[0] == 0xFF and head[1] >= 0xE0


def is_adts(data: Data) -> bool:
    """Whether the file is AAC with ADTS headers, possibly after an ID3 tag: two frames in a row."""
    return _starts_with(data, _adts_frame)


_Frame = tuple[int, tuple[int, ...], float | None]
"""Bytes of a frame; the values that change only between recordings; and the duration that the recording states."""
_ReadFrame = Callable[[Data, int], "_Frame | None"]


def _starts_with(data: Data, read_frame: _ReadFrame) -> bool:
    place = after_id3(data, 0)
    first = read_frame(data, place)
    return first is not None and read_frame(data, place + first[0]) is not None


def walk_mpeg_audio(data: Data) -> list[Part]:
    """MP3 files, each with the duration that its first frame states, if any."""
    return _walk_frames(data, _mpeg_frame, "mp3")


def walk_adts(data: Data) -> list[Part]:
    """AAC files."""
    return _walk_frames(data, _adts_frame, "aac")


def _walk_frames(data: Data, read_frame: _ReadFrame, container: str) -> list[Part]:
    parts: list[Part] = []
    place = after_id3(data, 0)
    start, kind, seconds, fault = 0, None, None, None
    junk: int | None = None  # start of bytes that are not frames
    while place < len(data):
        frame = read_frame(data, place)
        if frame is not None and (junk is not None or kind not in (None, frame[1])):
            following = read_frame(data, place + frame[0])  # one header may be chance, two that agree seldom are
            frame = frame if following is not None and following[1] == frame[1] else None
        if frame is None:
            junk = place if junk is None else junk
            behind = after_id3(data, place)
            place = behind if behind > place else _next_sync(data, place + 1)
            continue
        size, this_kind, stated = frame
        seam = place if junk is None else junk
        is_tagged = seam < place and data[seam : seam + 3] == b"ID3"  # a decoder would take its content for sound
        if kind is not None and (this_kind != kind or stated is not None or is_tagged):
            parts.append(Part(start, seam, fault, seconds=seconds, container=container))
            start, seconds, fault = seam, None, None
        elif place - seam > _MOST_JUNK and not _TAG.match(data, seam):
            fault = f"{place - seam} bytes within it are no sound"
        kind, junk = this_kind, None
        seconds = stated if stated is not None else seconds
        place += size
    return [*parts, Part(start, len(data), fault, seconds=seconds, container=container)]


def _next_sync(data: Data, place: int) -> int:
    found = data.find(b"\xff", place)
    tag = data.find(b"ID3", place, found if found >= 0 else len(data))
    places = [place for place in (found, tag) if place >= 0]
    return min(places, default=len(data))


_BITRATES = {  # kbit/s, by MPEG-1 or not, and by layer
    (True, 3): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 1): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 3): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 1): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Layers as coded in the header: 3 is layer I, and 1 layer III."""
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


def _mpeg_frame(data: Data, place: int) -> _Frame | None:
    header = data[place : place + 4]
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, header[1] >> 1 & 3
    bitrate, rate_index = header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or layer == 0 or bitrate in (0, 15) or rate_index == 3:
        return None
    is_first_version = version == 3
    rate = _RATES[version][rate_index]
    bits = _BITRATES[is_first_version, layer][bitrate] * 1000
    padding = header[2] >> 1 & 1
    if layer == 3:
        size = (12 * bits // rate + padding) * 4
    else:
        size = (72 if layer == _LAYER_3 and not is_first_version else 144) * bits // rate + padding
    is_mono = header[3] >> 6 == 3
    stated = _stated_seconds(data, place, is_first_version, is_mono, rate) if layer == _LAYER_3 else None
    return size, (version, layer, rate, is_mono), stated


def _stated_seconds(data: Data, place: int, is_first_version: bool, is_mono: bool, rate: int) -> float | None:
    """Duration that a Xing, Info or VBRI frame states; None for a frame of sound, 0 if it states no count."""
    side = 17 if is_mono else 32
    if not is_first_version:
        side = 9 if is_mono else 17
    samples = 1152 if is_first_version else 576
    tag = data[place + 4 + side : place + 16 + side]
    if tag[:4] in (b"Xing", b"Info") and len(tag) == 12:
        return struct.unpack(">I", tag[8:])[0] * samples / rate if tag[7] & 1 else 0.0
    tag = data[place + 36 : place + 54]
    if tag[:4] == b"VBRI" and len(tag) == 18:
        return struct.unpack(">I", tag[14:])[0] * samples / rate
    return None


def _adts_frame(data: Data, place: int) -> _Frame | None:
    header = data[place : place + 7]
    if len(header) < 7 or header[0] != 0xFF or header[1] & 0xF6 != 0xF0:
        return None
    rate_index = header[2] >> 2 & 15
    channels = (header[2] & 1) << 2 | header[3] >> 6
    size = (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5
    if rate_index > 12 or size < 7:
        return None
    return size, (rate_index, channels), None
