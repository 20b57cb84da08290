"""A fork server that decodes the files of requests and cuts them into chunks, with the limits of `decoding_child`.

Promises: a recording's chunks are those that the command line cuts, or turns as a live session detects them. The voice
activity detector holds Python's lock while it works, so in the server process everything would wait for it; here it
runs at the same time as the model, and as detectors of other files.
It is run by `asr_doge.serving.chunk_decoding`, as `python -m asr_doge.serving.cutting_child SOCKET`, and does not know
the model.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from asr_doge.audio.decoding_child import Blocks, main
from asr_doge.audio.resampling import SAMPLE_RATE
from asr_doge.inference.chunk_header import HEADER_BYTES, pack_header, unpack_header
from asr_doge.inference.chunking import Chunk
from asr_doge.inference.cutting import cut_into_chunks
from asr_doge.serving.session_settings import Chunking, TurnDetection
from asr_doge.serving.turns import TurnCutter

_CUTTING = struct.Struct("<dBII")
_AS_THE_MODEL, _AT_PAUSES, _AT_TURNS = range(3)
_HEARD = struct.Struct("<Q")
MESSAGE_HEADER_BYTES = _HEARD.size + HEADER_BYTES
"""Bytes of a message before the samples of its chunk."""


@dataclass(frozen=True)
class Cutting:
    """How to cut a recording.

    Attributes:
        max_seconds: longest chunk.
        chunking: as of a request.
    """

    max_seconds: float
    chunking: Chunking = None

    def packed(self) -> bytes:
        """As it is sent."""
        if isinstance(self.chunking, TurnDetection):
            turns = self.chunking
            return _CUTTING.pack(self.max_seconds, _AT_TURNS, turns.prefix_padding_ms, turns.silence_duration_ms)
        return _CUTTING.pack(self.max_seconds, _AT_PAUSES if self.chunking == "auto" else _AS_THE_MODEL, 0, 0)

    @classmethod
    def unpacked(cls, work_options: bytes) -> "Cutting":
        """As it was sent."""
        max_seconds, kind, padding, silence = _CUTTING.unpack_from(work_options)
        if kind == _AT_TURNS:
            return cls(max_seconds, TurnDetection(padding, silence))
        return cls(max_seconds, "auto" if kind == _AT_PAUSES else None)

    def cut(self, blocks: Blocks) -> Iterator[Chunk | None]:
        """The chunks of a recording in blocks `[samples]` at 16 kHz; None after a block that completes no chunk."""
        if not isinstance(self.chunking, TurnDetection):
            yield from cut_into_chunks(blocks, self.max_seconds, self.chunking == "auto", may_use_process=False)
            return
        cutter = TurnCutter(self.chunking, self.max_seconds)
        for block in blocks:
            chunks = cutter.feed(block)
            yield from chunks
            if not chunks:
                yield None
        yield from cutter.finish()


def cut(blocks: Blocks, work_options: bytes) -> Iterator[bytes]:
    """A message for each chunk and one for the end, and some between, at which a cancelled reader can stop."""
    samples = 0

    def heard() -> Blocks:
        nonlocal samples
        for block in blocks:
            samples += len(block)
            yield block

    for chunk in Cutting.unpacked(work_options).cut(heard()):
        yield packed(samples, chunk)
    yield packed(samples, None)


def packed(samples: int, chunk: Chunk | None) -> bytes:
    """A message: the number of samples so far, and the chunk that they complete, if any."""
    heard = _HEARD.pack(samples)
    return heard if chunk is None else b"".join((heard, pack_header(chunk), chunk.samples.tobytes()))


def unpacked(message: bytes) -> tuple[int, Chunk | None]:
    """The number of samples so far and the chunk in a message, if it has one."""
    (samples,) = _HEARD.unpack_from(message)
    if len(message) == _HEARD.size:
        return samples, None
    waveform = np.frombuffer(message, dtype=np.float32, offset=MESSAGE_HEADER_BYTES).copy()  # torch wants it writable
    return samples, unpack_header(message[_HEARD.size : MESSAGE_HEADER_BYTES], waveform)


def _warm_up() -> None:
    """Load the libraries once, so that forks share them."""
    sound = np.random.default_rng(0).normal(0, 0.1, SAMPLE_RATE).astype(np.float32)
    for chunking in ("auto", TurnDetection()):
        for _ in cut(iter([sound]), Cutting(30.0, chunking).packed()):
            pass


if __name__ == "__main__":
    _warm_up()
    main(cut)
