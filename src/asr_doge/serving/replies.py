"""Transcripts as OpenAI's clients parse them.

Promises: every field that their types require is there and of its type; JSON replies also have word times, confidences
and `warnings`. `logprob` of a word is the natural logarithm of its confidence, the probability that it is right.
"""

import math
import zlib
from collections.abc import Callable, Iterable
from statistics import fmean
from typing import Any

from asr_doge.inference.output import document
from asr_doge.inference.results import Segment, Transcription, Word
from asr_doge.serving.form_fields import TranscriptionRequest

UNKNOWN_LANGUAGE = "und"
"""ISO 639's code for a language that was not determined."""
SEEK_FRAMES = 100
"""Whisper's frames in a second, in which `seek` is counted."""
LEAST_CONFIDENCE = 1e-6


def reply(
    result: Transcription, request: TranscriptionRequest, model: str, token_ids: Callable[[str], list[int]]
) -> str | dict[str, Any]:
    """The body of a reply: text, or an object for JSON.

    Args:
        result: what was transcribed.
        request: what was asked for.
        model: its name.
        token_ids: of a text, by the model's tokenizer.
    """
    if request.response_format == "text":
        return result.text + "\n"
    if request.response_format in ("srt", "vtt"):
        return document(result, request.response_format, model)
    body = _common(result, request)
    if request.response_format == "verbose_json":
        body |= {"task": "transcribe", "language": request.language or UNKNOWN_LANGUAGE}
        if not request.granularities or "segment" in request.granularities:
            body["segments"] = [_segment(number, segment, token_ids) for number, segment in enumerate(result.segments)]
    return body


def done_event(result: Transcription, request: TranscriptionRequest) -> dict[str, Any]:
    """The last event of a streamed reply."""
    return {"type": "transcript.text.done"} | _common(result, request)


def delta_event(text: str, words: Iterable[Word], with_logprobs: bool) -> dict[str, Any]:
    """An event of a streamed reply: the text that follows what was sent before."""
    event: dict[str, Any] = {"type": "transcript.text.delta", "delta": text, "words": [word_of(word) for word in words]}
    return event | ({"logprobs": logprobs(words)} if with_logprobs else {})


def usage(seconds: float) -> dict[str, Any]:
    """The `usage` of a reply: the length of the audio."""
    return {"type": "duration", "seconds": round(seconds, 3)}


def warnings(result: Transcription) -> list[str]:
    """Warnings about the transcript, one line each: that the recording is incomplete, and its notes."""
    return [*([result.incomplete] if result.incomplete else []), *result.notes]


def warning_header(result: Transcription) -> dict[str, str]:
    """The warnings of a reply that is not JSON, as header `X-Warnings` in ASCII; empty if there are none."""
    text = " ".join(" ".join(warnings(result)).split()).encode("ascii", "backslashreplace").decode()
    return {"X-Warnings": text} if text else {}


def word_of(word: Word, offset: float = 0.0) -> dict[str, Any]:
    """A word, its times in seconds, and its confidence."""
    confidence = None if word.confidence is None else round(word.confidence, 4)
    return {
        "word": word.text,
        "start": round(word.start + offset, 3),
        "end": round(word.end + offset, 3),
        "confidence": confidence,
    }


def logprobs(words: Iterable[Word]) -> list[dict[str, Any]]:
    """One entry a word."""
    return [
        {"token": word.text, "bytes": list(word.text.encode()), "logprob": round(_logprob(word), 4)}
        for word in words
        if word.confidence is not None
    ]


def _common(result: Transcription, request: TranscriptionRequest) -> dict[str, Any]:
    words = [word for segment in result.segments for word in segment.words]
    body = {
        "text": result.text,
        "duration": round(result.duration, 3),
        "usage": usage(result.duration),
        "languages": [{"code": request.language}] if request.language else [],
        "words": [word_of(word) for word in words],
        "warnings": warnings(result),
    }
    return body | ({"logprobs": logprobs(words)} if request.with_logprobs else {})


def _segment(number: int, segment: Segment, token_ids: Callable[[str], list[int]]) -> dict[str, Any]:
    """Whisper's ten fields.

    Silence gives no segment, so `no_speech_prob` is 0; texts are not sampled, so `temperature` is 0.
    """
    scores = [_logprob(word) for word in segment.words if word.confidence is not None]
    fields: dict[str, Any] = {
        "id": number,
        "seek": round(SEEK_FRAMES * segment.start),
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "text": segment.text,
        "tokens": token_ids(segment.text),
        "temperature": 0.0,
        "avg_logprob": round(fmean(scores) if scores else 0.0, 4),
        "compression_ratio": round(_compression_ratio(segment.text), 4),
        "no_speech_prob": 0.0,
    }
    if segment.alternatives:
        fields["alternatives"] = [{"text": one.text, "score": round(one.score, 3)} for one in segment.alternatives]
    return fields


def _logprob(word: Word) -> float:
    return math.log(max(word.confidence or 0.0, LEAST_CONFIDENCE))


def _compression_ratio(text: str) -> float:
    content = text.encode()
    return len(content) / len(zlib.compress(content))
