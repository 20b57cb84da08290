"""Decode compressed sound and the sound of videos with FFmpeg (PyAV), to the last packet.

Promises: every packet of the chosen track is decoded, whatever length a header estimates; each stretch of sound has
its start time on the clock that all tracks of the file share. Packets that cannot be decoded are skipped and reported
as a fault, and so is an end before the one that the header states. Of several tracks the one marked as default, or
the first, is read, unless it is silent and another is not; a note names the others. It does not mix channels or insert
silence.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from asr_doge.audio.arrays import to_floats
from asr_doge.audio.file_parts import Part, open_part
from asr_doge.audio.sound import Note, Sound
from asr_doge.audio.timeline import LONGEST_GAP_SECONDS, Clock
from asr_doge.errors import AudioError, DamagedAudioError

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.packet import Packet

# FFmpeg also opens playlists, image sequences and scripts that name other files or addresses. A recording from an
# untrusted source must not make us read those, so only containers that hold their own sound are allowed.
FFMPEG_FORMATS = (
    *("aac", "ac3", "aiff", "amr", "ape", "asf", "au", "avi", "avr", "caf", "dsf", "dss", "dts", "dv", "eac3", "flac"),
    *("flv", "iff", "ircam", "matroska", "mlp", "mov", "mp3", "mpc", "mpc8", "mpeg", "mpegts", "mxf", "nistsphere"),
    *("nut", "ogg", "oma", "pvf", "qcp", "rm", "shn", "sox", "tak", "truehd", "tta", "voc", "w64", "wav", "wtv", "wv"),
    "xwma",
)
_SHORTFALL_SECONDS = 0.5
"""Seconds: headers are rounded, and encoders count a start-up delay that decoders drop (most in AAC at low rates)."""
_CLOCK_FROM_ZERO = ("matroska", "mov", "avi", "flv")
"""Containers whose clock starts at 0; the others count from their first packet."""
_WITH_CLOCK = (*_CLOCK_FROM_ZERO, "mpegts", "mpeg", "asf", "ogg", "nut", "mxf", "rm", "wtv")
"""Containers with timestamps; for others, FFmpeg counts samples or estimates from the bit rate."""
_STATES_LENGTH = ("mov", "avi", "asf", "flv", "wv", "tta", "ape", "tak", "caf", "aiff", "voc")
"""Containers for which FFmpeg's duration is that of the header. For others a `Part` has it, if anything."""
_AUDIBLE_POWER = 1e-6
_FAR_LOUDER = 100.0
_LONGEST_PACKET_SECONDS = 60.0
"""The last packet of an Ogg Vorbis file may state 2^32 samples minus a few, which is a negative length."""
_LOST_SECONDS = 0.1
"""From twice this duration on, packets that cannot be decoded count as damage; one or two are usual at a start and
after tags."""


def choose_track(path: Path, part: Part, name: str, on_note: Note) -> int:
    """Number of the sound track to read, from 0, counting sound tracks only.

    Raises:
        DamagedAudioError: truncated where nothing can be read of it.
        AudioError: not a container that can be read, or no sound in it.
    """
    from av.stream import Disposition

    with _opened(path, part, name) as container:
        tracks = container.streams.audio
        if not tracks:
            raise AudioError(f"{name} has no audio track: pass a recording with sound.")
        # Not the one that FFmpeg prefers: among equals its choice varies.
        chosen = next((number for number, track in enumerate(tracks) if track.disposition & Disposition.default), 0)
        if len(tracks) == 1:
            return chosen
        powers = _loudest_powers(container, chosen)
        why = ""
        loudest = int(np.argmax(powers))
        if powers[chosen] < _AUDIBLE_POWER and powers[loudest] > _FAR_LOUDER * powers[chosen]:
            why, chosen = f", for track {chosen + 1} is silent", loudest
        others = ", ".join(_title(number, track) for number, track in enumerate(tracks) if number != chosen)
        on_note(
            f"{name} has {len(tracks)} sound tracks: {_title(chosen, tracks[chosen])} is read{why}; not read: {others}"
        )
        return chosen


def _title(number: int, track: "AudioStream") -> str:
    labels = [track.metadata[key] for key in ("language", "title") if track.metadata.get(key, "und") != "und"]
    return f"track {number + 1}" + (f" ({', '.join(labels)})" if labels else "")


def _loudest_powers(container: "InputContainer", chosen: int) -> NDArray[np.float64]:
    """Power of each track at its loudest moment; stops as soon as the chosen one is known to be audible."""
    import av

    tracks = {track.index: number for number, track in enumerate(container.streams.audio)}
    powers = np.zeros(len(tracks))
    with suppress(av.FFmpegError):  # errors are reported when the track is read
        for packet in container.demux(container.streams.audio):
            number = tracks[packet.stream_index]
            with suppress(av.FFmpegError):
                for frame in packet.decode():
                    powers[number] = max(powers[number], float(_planes(frame).var(axis=1).max(initial=0.0)))
            if powers[chosen] >= _AUDIBLE_POWER:
                break
    return powers


def decode(path: Path, part: Part, track: int, name: str, faults: list[str]) -> Generator[Sound, None, float]:
    """The sound of a track, as stored.

    Args:
        path, part: the file and the part of it; only the first part of a file may start late.
        track: its number among the sound tracks.
        name: of the recording, for errors.
        faults: list to which faults are added.

    Returns:
        End of the longest track of the part, in seconds.

    Raises:
        AudioError: not a container that can be read.
    """
    with _opened(path, part, name) as container:
        tracks = container.streams.audio
        if not tracks:
            raise AudioError(f"{name} has no audio track: pass a recording with sound.")
        stream = tracks[min(track, len(tracks) - 1)]
        if stream.codec_context.name == "flac":
            stream.codec_context.options = {"err_detect": "crccheck+explode"}
        family = container.format.name.split(",")[0]
        clock = Clock(_zero(container, family, is_first=part.start == 0))
        decoded = lost = 0.0
        for packet, tick, moment in _packets(container, clock, faults):
            if packet.stream_index != stream.index:
                continue
            sounds = _decoded(packet, tick, moment if family in _WITH_CLOCK else None)
            if sounds is None:
                lost += _seconds(packet.duration, tick) or _LOST_SECONDS
                continue
            for sound in sounds:
                decoded += sound.seconds
                yield sound
        if lost > 2 * _LOST_SECONDS:
            faults.append(f"{lost:.1f} s of it cannot be decoded")
        _check_end(container, stream, part, decoded, clock, faults)
        return clock.end if family in _WITH_CLOCK else decoded


@contextmanager
def _opened(path: Path, part: Part, name: str) -> "Iterator[InputContainer]":
    """A part of a file as a container; if it is the whole file, it is opened by its path, which is faster."""
    import av

    is_whole = part.start == 0 and part.end == path.stat().st_size
    file: Any = str(path) if is_whole else open_part(path, part)
    kind = None if is_whole else part.container
    options = {"format_whitelist": ",".join(FFMPEG_FORMATS)}
    try:
        container = av.open(file, format=kind, options=options, metadata_errors="replace")
    except (av.FFmpegError, ValueError) as error:
        if part.fault:  # as an MP4 that was cut before its index, which is at its end
            raise DamagedAudioError(f"{name} is truncated or corrupt: {part.fault}; re-copy or re-encode it.") from None
        reason = getattr(error, "strerror", None) or str(error)
        raise AudioError(f"{name} is not audio that can be decoded ({reason}): convert it to WAV or FLAC.") from None
    try:
        with container:
            yield container
    finally:
        if not is_whole:
            file.close()


def _zero(container: "InputContainer", family: str, is_first: bool) -> float:
    """Time on the container's clock at the start of the recording, in seconds."""
    start = (container.start_time or 0) / 1e6
    return 0.0 if family in _CLOCK_FROM_ZERO and is_first and 0 <= start <= LONGEST_GAP_SECONDS else start


def _packets(
    container: "InputContainer", clock: Clock, faults: list[str]
) -> "Iterator[tuple[Packet[Any], Fraction | None, float | None]]":
    """All packets, each with the seconds of a tick of its times, and its start time; None if it has no time stamp."""
    import av

    ticks: dict[int, Fraction | None] = {}  # a packet makes a new fraction each time that it is asked
    try:
        for packet in container.demux():
            if packet.stream_index not in ticks:
                ticks[packet.stream_index] = packet.time_base
            tick = ticks[packet.stream_index]
            stamp = _seconds(packet.pts if packet.pts is not None else packet.dts, tick)
            duration = _seconds(packet.duration, tick) or 0.0
            if not 0.0 <= duration <= _LONGEST_PACKET_SECONDS:
                duration = 0.0
            yield packet, tick, clock.place(packet.stream_index, stamp, duration) if stamp is not None else None
    except av.FFmpegError as error:
        faults.append(error.strerror or str(error))


def _decoded(packet: "Packet[Any]", tick: Fraction | None, moment: float | None) -> list[Sound] | None:
    """The sound in a packet; None if it cannot be decoded."""
    import av

    stamp = _seconds(packet.pts, tick)
    sounds: list[Sound] = []
    try:
        for frame in packet.decode():
            assert isinstance(frame, av.AudioFrame)
            delay = frame.time - stamp if frame.time is not None and stamp is not None else 0.0
            # A delayed decoder gives frames from before a joint, whose stamps are of another clock.
            start = moment + delay if moment is not None and abs(delay) < 1.0 else None
            sounds.append(Sound(_planes(frame), frame.sample_rate, start))
    except av.EOFError:  # flushed twice
        return sounds
    except (av.FFmpegError, ValueError):
        return None
    return sounds


def _planes(frame: "AudioFrame") -> NDArray[np.float32]:
    """Samples of a frame `[channels, samples]`, full scale at 1."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    return np.ascontiguousarray(to_floats(samples))


def _seconds(ticks: int | None, tick: Fraction | None) -> float | None:
    # Not the product of fractions, which takes ten times as long.
    return ticks * tick.numerator / tick.denominator if ticks is not None and tick else None


def _check_end(
    container: "InputContainer", stream: "AudioStream", part: Part, decoded: float, clock: Clock, faults: list[str]
) -> None:
    """Compare the end of the sound with the end that the header states."""
    family = container.format.name.split(",")[0]
    held = decoded
    promised = part.seconds or 0.0
    if family == "matroska":
        held = clock.end + _zero(container, family, is_first=part.start == 0)
    elif family in _STATES_LENGTH and stream.duration is not None and stream.time_base is not None:
        promised = float(stream.duration * stream.time_base)
        held = max(decoded, clock.length_of(stream.index))
    if held < promised - _SHORTFALL_SECONDS:
        faults.append(f"its header promises {promised:.2f} s, but it holds {held:.2f} s")
