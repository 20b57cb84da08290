"""The form of a transcription request, for the server's OpenAPI description.

It is read as a stream within limits and not by FastAPI, which therefore cannot describe it itself.
"""

from typing import Any


def _field(description: str, kind: str = "string", **more: Any) -> dict[str, Any]:
    return {"type": kind, "description": description} | more


_FIELDS = {
    "file": _field(
        "The recording, or a video with sound: WAV, FLAC, MP3, Ogg, Opus, M4A, WebM, MP4 …", format="binary"
    ),
    "model": _field("The model, or one of its aliases; see /v1/models."),
    "language": _field("Language spoken, as a code."),
    "languages[]": _field("Languages spoken; of several it is not known which.", "array", items={"type": "string"}),
    "prompt": _field("Names to listen for, between commas. It never reaches the language model."),
    "keywords[]": _field("Words or phrases to listen for.", "array", items={"type": "string"}),
    "response_format": _field(
        "Form of the reply.", enum=["json", "text", "srt", "vtt", "verbose_json"], default="json"
    ),
    "temperature": _field("Without effect: texts are not sampled.", "number", minimum=0, maximum=1),
    "timestamp_granularities[]": _field(
        "Of verbose_json: `word` alone leaves out the segments.",
        "array",
        items={"type": "string", "enum": ["word", "segment"]},
    ),
    "include[]": _field("logprobs: one entry a word.", "array", items={"type": "string", "enum": ["logprobs"]}),
    "chunking_strategy": _field(
        "auto: cut at pauses what could be read whole. Or an object of type server_vad: cut at turns, with its"
        " prefix_padding_ms and silence_duration_ms."
    ),
    "stream": _field("Send the text as it is made, as server-sent events.", "boolean", default=False),
}

TRANSCRIPTION_SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "required": ["file", "model"], "properties": _FIELDS},
            }
        },
    }
}
