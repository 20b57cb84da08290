"""A tone of known pitch and loudness, in any format, for the tests of what reads it."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

SECONDS = 2
RMS = 0.3 / 2**0.5


def tone(rate: int, seconds: float = SECONDS) -> NDArray[np.float32]:
    """440 Hz at an amplitude of 0.3."""
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def assert_is_the_tone(waveform: NDArray[np.float32], rate: int = 16000) -> None:
    assert waveform.dtype == np.float32
    assert waveform.ndim == 1
    # Lossy formats add a little silence at the ends.
    assert waveform.size / rate == pytest.approx(SECONDS, abs=0.11)
    inside = waveform[rate // 2 : -rate // 2]
    assert np.abs(np.fft.rfft(inside)).argmax() * rate / inside.size == pytest.approx(440, abs=2)
    assert inside.std() == pytest.approx(RMS, rel=0.05)


def write_with_ffmpeg(path: Path, codec: str | None, rate: int, layout: str, video_codec: str | None = None) -> None:
    """Write the tone in every channel, two seconds of black picture, or both."""
    with av.open(str(path), "w") as container:
        video = container.add_stream(video_codec, rate=10, width=64, height=64) if video_codec else None
        audio = container.add_stream(codec, rate=rate, layout=layout) if codec else None
        if isinstance(video, av.VideoStream):
            for index in range(10 * SECONDS):
                picture = av.VideoFrame.from_ndarray(np.zeros((96, 64), dtype=np.uint8), format="yuv420p")
                picture.pts, picture.time_base = index, Fraction(1, 10)
                container.mux(video.encode(picture))
            container.mux(video.encode(None))
        if isinstance(audio, av.AudioStream):
            frames = tone_frames(rate, layout, audio.codec_context.frame_size or 1024)
            to_encoder = av.AudioResampler(audio.codec_context.format.name, layout, rate)
            for frame in frames:
                for converted in to_encoder.resample(frame):
                    container.mux(audio.encode(converted))
            container.mux(audio.encode(None))


def tone_frames(rate: int, layout: str, size: int) -> Iterator[av.AudioFrame]:
    for start in range(0, rate * SECONDS, size):
        planes = np.tile(tone(rate)[start : start + size], (av.AudioLayout(layout).nb_channels, 1))
        frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
        frame.rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        yield frame


def write_wav(path: Path, rate: int = 16000) -> bytes:
    soundfile.write(path, tone(rate), rate, subtype="PCM_16")
    return path.read_bytes()
