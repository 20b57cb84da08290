"""Transcripts as text or JSON.

Promises: `txt` is one line a recording; `json` is one document with a version, the results in order and the failures.
It knows nothing of word times or subtitles.
"""

import json
from collections.abc import Sequence

from asr_doge.inference.results import FailedTranscription, Transcription

SCHEMA_VERSION = 1


def text_line(result: Transcription, show_path: bool) -> str:
    """The transcript, after its file's name and a tab if there are several."""
    text = " ".join(result.text.split())  # nothing keeps a language model from writing line breaks
    return f"{result.path}\t{text}" if show_path else text


def json_document(results: Sequence[Transcription | FailedTranscription], model: str) -> str:
    """All results as one JSON document."""
    entries = [_json_entry(result) for result in results]
    return json.dumps({"version": SCHEMA_VERSION, "model": model, "results": entries}, indent=2, ensure_ascii=False)


def _json_entry(result: Transcription | FailedTranscription) -> dict[str, str | float | None]:
    path = str(result.path) if result.path else None
    if isinstance(result, FailedTranscription):
        return {"path": path, "error": str(result.error)}
    return {"path": path, "duration": round(result.duration, 3), "text": result.text}
