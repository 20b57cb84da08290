"""Makes processes that decode, and Ray's workers, crash or hang on certain recordings; Python runs it at its start."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CRASHES, HANGS = b"crashes its decoder", b"hangs its decoder"
FILLS_ITS_PIPE = b"has a block that no pipe holds"
DECODER_SECONDS = 3
"""What a hanging decoder is given here: none that works needs as much for a block of these recordings."""
IS_BUSY, TAKES_MEMORY, FAILS = b"keeps its decoder busy", b"takes memory without end", b"raises an error"

DECODER = "asr_doge.audio.decoding_child"
DECODERS = "ADDRESS_OF_DECODERS"
"""Variable with the address at which Ray's workers ask for decoding processes; see `tests.nursery`."""

if DECODER in sys.orig_argv:
    import numpy

    from asr_doge.audio import reading

    honest = reading.read_blocks

    def read_blocks(path: Any, *arguments: Any, **options: Any) -> Iterator[Any]:
        content = Path(path).read_bytes()
        if content == CRASHES:
            os.kill(os.getpid(), signal.SIGSEGV)
        if content == FILLS_ITS_PIPE:
            yield numpy.zeros(1, dtype=numpy.float32)
            yield numpy.zeros(1 << 20, dtype=numpy.float32)
        while content == IS_BUSY:
            pass
        if content == TAKES_MEMORY:
            yield numpy.zeros(1 << 50, dtype=numpy.float32)
        if content == FAILS:
            raise KeyError(path)
        if content == HANGS:
            time.sleep(10_000)
        yield from honest(path, *arguments, **options)

    reading.read_blocks = read_blocks

if any("default_worker.py" in argument for argument in sys.orig_argv):
    from asr_doge.audio import file_decoding, reading
    from tests.nursery import start_at

    file_decoding.BLOCK_SECONDS = DECODER_SECONDS
    file_decoding._started = start_at(os.environ[DECODERS], DECODER)
    honest_duration = reading.audio_duration

    def audio_duration(path: Any) -> float:
        if Path(path).read_bytes() == CRASHES:
            os.kill(os.getpid(), signal.SIGSEGV)
        return honest_duration(path)

    reading.audio_duration = audio_duration
