"""Print a stream while it is transcribed, for `transcribe --stream` and `listen`."""

import shutil
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asr_doge.errors import AudioError
from asr_doge.inference.output import document, stream_line
from asr_doge.inference.stream import StreamTranscriber, StreamUpdate
from asr_doge.inference.transcription import Transcriber


def print_live(
    blocks: Iterable[NDArray[np.float32]], transcriber: Transcriber, output_format: str, model: str, path: Path | None
) -> int:
    """Transcribe a stream and print it; returns the exit code.

    txt prints a line for each segment when it ends, and on a terminal the words before that, as they come; jsonl prints
    every change; other formats are printed at the end. Ctrl-C ends the stream as its own end does.

    Args:
        blocks: `[samples]` each, mono at 16 kHz.
        transcriber: the model.
        output_format: of `FORMATS`.
        model: name of the model, for JSON.
        path: the file, if it is one.
    """
    live = StreamTranscriber(transcriber)
    error = None
    try:
        for block in blocks:
            _show(live.feed(block), output_format)
    except KeyboardInterrupt:  # the usual end of listening
        pass
    except AudioError as end:  # what came before it still counts
        error = end
    _show(live.finish(), output_format)
    if output_format not in ("txt", "jsonl"):
        print(document(replace(live.transcription(), path=path), output_format, model), end="")
    if error is None:
        return 0
    print(f"error: {error}", file=sys.stderr)
    return 2


def _show(update: StreamUpdate | None, output_format: str) -> None:
    """Print a change, if the format shows changes."""
    if update is None:
        return
    if output_format == "jsonl":
        print(stream_line(update), flush=True)
    if output_format != "txt":
        return
    is_terminal = sys.stdout.isatty()
    start = "\r\x1b[K" if is_terminal else ""
    for segment in update.finished:
        print(f"{start}{' '.join(segment.text.split())}", flush=True)
    if is_terminal:
        shown = f"{update.committed} {update.tentative}".strip()
        width = shutil.get_terminal_size().columns - 1
        print(f"{start}{shown[-width:]}", end="", flush=True)
