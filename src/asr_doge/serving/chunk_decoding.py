"""Files of requests to chunks for the model, in processes of their own.

Promises: those of `asr_doge.audio.file_decoding`; what a fork cuts ahead is what a pipe holds, and one chunk.
It does not know the model; see `asr_doge.serving.cutting_child` for how recordings are cut.
"""

import threading
from collections.abc import Iterator
from typing import BinaryIO

from asr_doge.audio.file_decoding import FileDecoder
from asr_doge.audio.resampling import SAMPLE_RATE
from asr_doge.audio.sound import Note
from asr_doge.inference.chunking import Chunk
from asr_doge.serving.cutting_child import MESSAGE_HEADER_BYTES, Cutting, unpacked
from asr_doge.serving.session_settings import Chunking

MODULE = "asr_doge.serving.cutting_child"


class ChunkDecoder:
    """Decodes files and cuts them.

    Args:
        max_seconds: longest chunk that the model reads.
        memory, max_duration: as of a `FileDecoder`.

    Attributes:
        files: decodes them.
    """

    def __init__(self, max_seconds: float, memory: int, max_duration: float) -> None:
        self._max_seconds = max_seconds
        longest = MESSAGE_HEADER_BYTES + 4 * (round(max_seconds * SAMPLE_RATE) + SAMPLE_RATE)
        self.files = FileDecoder(memory, max_duration, MODULE, longest)

    def chunks(
        self, file: BinaryIO, name: str, cancelled: threading.Event, on_note: Note, chunking: Chunking
    ) -> Iterator[tuple[int, Chunk | None]]:
        """A recording as `ChunkSource` has it; arguments and errors are those of `FileDecoder.blocks`."""
        work_options = Cutting(self._max_seconds, chunking).packed()
        return map(unpacked, self.files.messages(file, name, cancelled, on_note, work_options=work_options))

    def close(self) -> None:
        """End the fork server."""
        self.files.close()
