"""Decode the samples of live clients to the waveform that the model reads.

Promises: however the bytes are divided into messages, the result is one continuous waveform at 16 kHz, at most a few
milliseconds late.
"""

import base64
import binascii
import io
from dataclasses import dataclass

import numpy as np
import soundfile
from numpy.typing import NDArray

from asr_doge.audio.resampling import SAMPLE_RATE, BlockResampler

PCM_RATES = (8000, 16000, 24000, 32000, 44100, 48000)
"""OpenAI's own is 24,000 Hz; the others are an extension."""
TELEPHONE = {"audio/pcmu": "ULAW", "audio/pcma": "ALAW"}
"""G.711 at 8,000 Hz, and libsndfile's name for it."""


@dataclass(frozen=True)
class AudioFormat:
    """How samples are sent: `audio/pcm` (16-bit little-endian mono), `audio/pcmu` or `audio/pcma`."""

    type: str = "audio/pcm"
    rate: int = 24000

    @property
    def sample_bytes(self) -> int:
        """Bytes of a sample."""
        return 2 if self.type == "audio/pcm" else 1

    @property
    def description(self) -> dict[str, object]:
        """The format in the protocol's JSON."""
        return {"type": self.type, "rate": self.rate} if self.type == "audio/pcm" else {"type": self.type}


class AudioInput:
    """Reads one stream in one format."""

    def __init__(self, audio_format: AudioFormat) -> None:
        self.format = audio_format
        self._resampler = BlockResampler(audio_format.rate, SAMPLE_RATE)
        self._odd = b""

    def read(self, text: str) -> NDArray[np.float32]:
        """The next `[samples]` at 16 kHz, from base64.

        Raises:
            ValueError: it is no base64.
        """
        try:
            content = self._odd + base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise ValueError(str(error)) from None
        whole = len(content) // self.format.sample_bytes * self.format.sample_bytes
        self._odd = content[whole:]
        return self._resampler.feed(self._decoded(content[:whole]))

    def finish(self) -> NDArray[np.float32]:
        """The last `[samples]`, which are still in the resampler."""
        return self._resampler.finish()

    def _decoded(self, content: bytes) -> NDArray[np.float32]:
        if self.format.type == "audio/pcm":
            return np.frombuffer(content, dtype="<i2").astype(np.float32) / np.float32(32768)
        if not content:
            return np.zeros(0, dtype=np.float32)
        samples, _ = soundfile.read(
            io.BytesIO(content),
            dtype="float32",
            channels=1,
            samplerate=self.format.rate,
            format="RAW",
            subtype=TELEPHONE[self.format.type],
        )
        return np.asarray(samples, dtype=np.float32)
