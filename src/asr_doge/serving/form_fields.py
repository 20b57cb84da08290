"""Parse the form of a transcription request.

Promises: every field of OpenAI's is known; an unsupported value is a 400 that names the field and the remedy; a field
without effect here (temperature) is checked all the same. Unknown fields are ignored, since clients of other servers
send theirs.
"""

import json
import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

from starlette.datastructures import FormData

from asr_doge.serving.errors import APIError
from asr_doge.serving.hints import check_keywords, hotwords_of, language_of
from asr_doge.serving.session_settings import PADDING_MS, SILENCE_MS, Chunking, TurnDetection

ResponseFormat = Literal["json", "text", "srt", "vtt", "verbose_json"]
NO_SPEAKERS = (
    "this server does not tell speakers apart: ask for response_format json, text, srt, vtt or verbose_json, and for"
    " speakers run a diarization tool (such as pyannote.audio) beside it and join the two by time"
)

FILE_TURNS = TurnDetection(prefix_padding_ms=300, silence_duration_ms=200)
"""OpenAI's, where a `chunking_strategy` of type `server_vad` names no others."""
NO_THRESHOLD = (
    "chunking_strategy: threshold has no effect, since the detector has its own, relative to the recording's loudness"
)


@dataclass(frozen=True)
class TranscriptionRequest:
    """A request, checked.

    Attributes:
        response_format: of the reply.
        language: spoken; None where it was not said.
        hotwords: to listen for; None for the server's own.
        granularities: of times, of `word` and `segment`.
        with_logprobs: whether to give confidences as log-probabilities.
        stream: whether to send the text as it is transcribed.
        chunking: how to cut the recording.
        notes: warnings about fields that have no effect.
    """

    response_format: ResponseFormat
    language: str | None
    hotwords: tuple[str, ...] | None
    granularities: frozenset[str]
    with_logprobs: bool
    stream: bool
    chunking: Chunking = None
    notes: tuple[str, ...] = ()


def parse_fields(form: FormData, models: Collection[str], has_hotwords: bool) -> TranscriptionRequest:
    """Read and check all fields but the file.

    Args:
        form: of the request.
        models: names under which the model may be asked for.
        has_hotwords: whether the model can listen for words.

    Raises:
        APIError: 400, or 404 for a model that is not here.
    """
    check_model(_text(form, "model"), models)
    if _all(form, "known_speaker_names") or _all(form, "known_speaker_references"):
        raise APIError(400, NO_SPEAKERS, param="known_speaker_names", code="unsupported")
    response_format = _text(form, "response_format") or "json"
    if response_format == "diarized_json":
        raise APIError(400, NO_SPEAKERS, param="response_format", code="unsupported")
    if response_format not in get_args(ResponseFormat):
        known = ", ".join(get_args(ResponseFormat))
        raise APIError(400, f"response_format '{response_format}' is unknown: choose from {known}", "response_format")
    stream = _switch(form, "stream")
    if stream and response_format in ("srt", "vtt"):
        raise APIError(400, f"response_format {response_format} cannot be streamed: leave out stream", param="stream")
    _check_temperature(_text(form, "temperature"))
    granularities = frozenset(_all(form, "timestamp_granularities"))
    if unknown := granularities - {"word", "segment"}:
        raise APIError(
            400, f"timestamp_granularities '{min(unknown)}': choose word or segment", "timestamp_granularities"
        )
    include = frozenset(_all(form, "include"))
    if unknown := include - {"logprobs"}:
        raise APIError(400, f"include '{min(unknown)}' is unknown: there is logprobs", param="include")
    keywords, prompt = _all(form, "keywords"), _text(form, "prompt")
    if keywords and not has_hotwords:
        raise APIError(
            400, "this model cannot listen for keywords: leave them out", param="keywords", code="unsupported"
        )
    check_keywords(keywords)
    languages = [language for language in [_text(form, "language"), *_all(form, "languages")] if language]
    return TranscriptionRequest(
        response_format,  # type: ignore[arg-type]  # one of them, as was checked
        language_of(languages),
        hotwords_of(prompt, keywords) if has_hotwords else None,
        granularities,
        "logprobs" in include,
        stream,
        *_chunking(form),
    )


def check_model(name: str | None, models: Collection[str]) -> None:
    """Refuse a request for another model.

    Raises:
        APIError: 400 or 404.
    """
    if not name:
        raise APIError(400, f"name the model: {min(models, key=len)}", param="model", code="missing_model")
    if "diarize" in name and name not in models:
        raise APIError(400, NO_SPEAKERS, param="model", code="unsupported")
    if name not in models:
        raise APIError(404, f"there is no model '{name[:100]}' here: /v1/models lists them", "model", "model_not_found")


def _all(form: FormData, name: str) -> list[str]:
    """Every value of a field that may be given several times, in any of its three spellings."""
    spelled = re.compile(rf"{name}(\[\d*\])?")
    return [value for key, value in form.multi_items() if spelled.fullmatch(key) and isinstance(value, str) and value]


def _text(form: FormData, name: str) -> str | None:
    values = form.getlist(name)
    if not values:
        return None
    if len(values) > 1 or not isinstance(values[0], str):
        raise APIError(400, f"{name} must be given once, as text", param=name)
    return values[0].strip()


def _switch(form: FormData, name: str) -> bool:
    value = (_text(form, name) or "false").lower()
    if value not in ("true", "false", "1", "0"):
        raise APIError(400, f"{name} is true or false, not '{value[:40]}'", param=name)
    return value in ("true", "1")


def _check_temperature(text: str | None) -> None:
    """Decoding is never random, so any temperature gives the same text."""
    try:
        is_right = 0 <= float(text or 0) <= 1
    except ValueError:
        is_right = False
    if not is_right:
        raise APIError(
            400, "temperature is a number from 0 to 1 (and changes nothing: texts are not sampled)", "temperature"
        )


def _chunking(form: FormData) -> tuple[Chunking, tuple[str, ...]]:
    """How to cut the recording, and notes on fields that have no effect."""
    values: dict[str, object] = {
        key[len("chunking_strategy[") :].rstrip("]"): value
        for key, value in form.multi_items()
        if key.startswith("chunking_strategy[")
    }
    if text := _text(form, "chunking_strategy"):
        try:
            given = json.loads(text) if text.startswith("{") else {"type": text}
        except (ValueError, RecursionError):
            given = {"type": text}
        values = given | values
    if values == {"type": "auto"}:
        return "auto", ()
    if not values:
        return None, ()
    if values.get("type") != "server_vad":
        raise APIError(400, "chunking_strategy is auto, or an object of type server_vad", param="chunking_strategy")
    threshold = _number(values, "threshold", 0, 1, 0.5)
    padding = _number(values, "prefix_padding_ms", *PADDING_MS, FILE_TURNS.prefix_padding_ms)
    silence = _number(values, "silence_duration_ms", *SILENCE_MS, FILE_TURNS.silence_duration_ms)
    return TurnDetection(round(padding), round(silence)), () if threshold == 0.5 else (NO_THRESHOLD,)


def _number(values: dict[str, object], name: str, least: float, most: float, otherwise: float) -> float:
    value = values.get(name, otherwise)
    try:
        number = float(value) if isinstance(value, str | int | float) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not least <= number <= most:
        raise APIError(400, f"chunking_strategy: {name} is a number from {least} to {most}", param="chunking_strategy")
    return number
