"""Odd recordings made on the spot: tones of known pitch at known times, in any container, with any clock."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

RATE = 16_000


def tone(frequency: float, seconds: float, rate: int, amplitude: float = 0.3) -> NDArray[np.float32]:
    """`[samples]`; nothing at a frequency of 0."""
    return (amplitude * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def pitch(waveform: NDArray[np.float32], seconds: float) -> float:
    """Frequency of what is heard within 50 ms of a moment; 0 for silence and beyond the end."""
    clip = waveform[max(round((seconds - 0.05) * RATE), 0) : round((seconds + 0.05) * RATE)]
    if len(clip) < 0.09 * RATE or clip.std() < 0.01:
        return 0.0
    return float(np.abs(np.fft.rfft(clip * np.hanning(len(clip)), 8 * len(clip))).argmax() * RATE / (8 * len(clip)))


def begins_at(waveform: NDArray[np.float32], after: float = 0.0) -> float:
    """When a sound first begins after a moment, in seconds."""
    start = round(after * RATE)
    return float(start + np.flatnonzero(np.abs(waveform[start:]) > 0.05)[0]) / RATE


@dataclass(frozen=True)
class Track:
    """A sound track: tones with the seconds at which its clock shows that they begin."""

    codec: str
    tones: Sequence[tuple[float, float, float]]  # start, frequency, seconds
    rate: int = 48_000
    layout: str = "mono"
    options: dict[str, str] = field(default_factory=dict)
    language: str | None = None


def write(
    path: Path,
    tracks: Sequence[Track],
    picture_seconds: float = 0.0,
    container_options: dict[str, str] | None = None,
    format: str | None = None,
) -> Path:
    """Write tracks, and a black picture of a length, as PyAV muxes them; libsndfile writes `vorbis` and `sphere`."""
    if tracks[0].codec in ("vorbis", "sphere"):
        ((_, frequency, seconds),) = tracks[0].tones
        samples = tone(frequency, seconds, tracks[0].rate)[:, None]
        kind = "NIST" if tracks[0].codec == "sphere" else None
        channels = av.AudioLayout(tracks[0].layout).nb_channels
        soundfile.write(path, np.tile(samples, channels), tracks[0].rate, format=kind)
        return path
    with av.open(str(path), "w", format=format, options=container_options or {}) as container:
        packets: list[Any] = []
        picture: Any = None
        if picture_seconds:
            picture = container.add_stream("libvpx" if path.suffix == ".webm" else "mpeg4", rate=10)
            picture.width = picture.height = 64
            picture.pix_fmt = "yuv420p"
        streams: list[Any] = []
        for track in tracks:
            stream: Any = container.add_stream(track.codec, rate=track.rate, layout=track.layout, options=track.options)
            if track.language:
                stream.metadata["language"] = track.language
            streams.append(stream)
        for number in range(round(10 * picture_seconds)):
            frame = av.VideoFrame.from_ndarray(np.zeros((96, 64), dtype=np.uint8), format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            packets += picture.encode(frame)
        packets += picture.encode(None) if picture else []
        for track, stream in zip(tracks, streams, strict=True):
            packets += _encoded(track, stream)
        packets.sort(key=lambda packet: packet.dts * packet.time_base)
        container.start_encoding()
        for packet in packets:
            container.mux(packet)
    return path


def _encoded(track: Track, stream: Any) -> list[Any]:
    packets: list[Any] = []
    size = stream.codec_context.frame_size or 1024
    to_encoder = None
    for start, frequency, seconds in track.tones:
        samples = tone(frequency, seconds, track.rate)
        channels = av.AudioLayout(track.layout).nb_channels
        for begin in range(0, len(samples), size):
            block = np.tile(samples[begin : begin + size], (channels, 1))
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=track.layout)
            frame.rate, frame.time_base = track.rate, Fraction(1, track.rate)
            frame.pts = round(start * track.rate) + begin
            to_encoder = av.AudioResampler(stream.codec_context.format.name, track.layout, track.rate)
            for converted in to_encoder.resample(frame):
                packets += stream.encode(converted)
    return packets + stream.encode(None)


def join(path: Path, *parts: Path) -> Path:
    """One file behind the other, as `cat` does it."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path
