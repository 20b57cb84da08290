"""The settings of a live session, and how clients change them.

Promises: an update changes only the settings that it names; unknown or unsupported ones are ignored, since clients
treat any error as fatal, and `describe` states what applies.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from asr_doge.serving.errors import APIError
from asr_doge.serving.hints import hotwords_of, language_of
from asr_doge.serving.live_audio import PCM_RATES, TELEPHONE, AudioFormat

CLIENT_COMMITS = ("gpt-realtime-whisper", "gpt-live-transcribe")
"""OpenAI's models without turn detection, whose clients commit items themselves."""
PCM_24K = AudioFormat()
"""The protocol's default."""
_OLD_FORMATS = {
    "pcm16": PCM_24K,
    "g711_ulaw": AudioFormat("audio/pcmu", 8000),
    "g711_alaw": AudioFormat("audio/pcma", 8000),
}


@dataclass(frozen=True)
class TurnDetection:
    """When a turn begins and ends, in milliseconds of audio before it and of silence after it."""

    prefix_padding_ms: int = 300
    silence_duration_ms: int = 500


Chunking = TurnDetection | Literal["auto"] | None
"""How to cut a recording: at turns; at pauses, also if the model could read it whole (auto); or only where it is too
long (None)."""

PADDING_MS, SILENCE_MS = (0, 2000), (100, 10_000)
"""Least and largest value of each."""
DEFAULT_TURNS = TurnDetection()


@dataclass(frozen=True)
class SessionSettings:
    """Settings of a session.

    Attributes:
        model: as the client calls it.
        format: of the audio.
        language: spoken; None where it was not said.
        prompt: as it was sent.
        keywords: as they were sent.
        turn_detection: None where the client commits.
        with_logprobs: whether confidences are wanted as log-probabilities too.
    """

    model: str
    format: AudioFormat = PCM_24K
    language: str | None = None
    prompt: str | None = None
    keywords: tuple[str, ...] = ()
    turn_detection: TurnDetection | None = DEFAULT_TURNS
    with_logprobs: bool = False

    @property
    def hotwords(self) -> tuple[str, ...] | None:
        """Words to listen for; None for the server's own."""
        return hotwords_of(self.prompt, self.keywords)

    def updated(self, session: Mapping[str, Any], models: Collection[str]) -> "SessionSettings":
        """Settings after `session.update`, or the older `transcription_session.update`, in either's spelling."""
        audio = _mapping(_mapping(session.get("audio")).get("input"))
        settings = self._with_transcription(
            _mapping(audio.get("transcription") or session.get("input_audio_transcription")), models
        )
        settings = replace(
            settings, format=_format(audio.get("format"), session.get("input_audio_format"), self.format)
        )
        for given in (audio, session):
            if "turn_detection" in given:
                settings = replace(
                    settings, turn_detection=_turn_detection(given["turn_detection"], self.turn_detection)
                )
        include = session.get("include")
        if isinstance(include, list):
            settings = replace(settings, with_logprobs=any("logprobs" in str(name) for name in include))
        return settings

    def _with_transcription(self, given: Mapping[str, Any], models: Collection[str]) -> "SessionSettings":
        settings = self
        model = given.get("model")
        if isinstance(model, str) and model in models and model != self.model:
            settings = replace(settings, model=model)
            if model in CLIENT_COMMITS:
                settings = replace(settings, turn_detection=None)
        if isinstance(given.get("prompt"), str):
            settings = replace(settings, prompt=given["prompt"] or None)
        if isinstance(given.get("keywords"), list):
            settings = replace(settings, keywords=tuple(word for word in given["keywords"] if isinstance(word, str)))
        languages = given.get("languages", [given["language"]] if given.get("language") else None)
        if isinstance(languages, list) and all(isinstance(language, str) for language in languages):
            try:
                settings = replace(settings, language=language_of(languages))
            except APIError:
                return settings
        return settings

    def describe(self, session_id: str) -> dict[str, Any]:
        """The session as the protocol states it."""
        detection = None
        if self.turn_detection is not None:
            detection = {
                "type": "server_vad",
                "threshold": 0.5,
                "prefix_padding_ms": self.turn_detection.prefix_padding_ms,
                "silence_duration_ms": self.turn_detection.silence_duration_ms,
            }
        transcription = {"model": self.model, "language": self.language, "prompt": self.prompt}
        return {
            "id": session_id,
            "object": "realtime.transcription_session",
            "type": "transcription",
            "expires_at": 0,
            "audio": {
                "input": {
                    "format": self.format.description,
                    "noise_reduction": None,
                    "transcription": transcription | {"keywords": list(self.hotwords or ())},
                    "turn_detection": detection,
                }
            },
            "include": ["item.input_audio_transcription.logprobs"] if self.with_logprobs else [],
        }


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _format(given: Any, old: Any, before: AudioFormat) -> AudioFormat:
    if isinstance(old, str) and old in _OLD_FORMATS:
        return _OLD_FORMATS[old]
    kind, rate = _mapping(given).get("type"), _mapping(given).get("rate") or AudioFormat.rate
    if isinstance(kind, str) and kind in TELEPHONE:
        return AudioFormat(kind, 8000)
    if kind == "audio/pcm" and rate in PCM_RATES:
        return AudioFormat(kind, rate)
    return before


def _turn_detection(given: Any, before: TurnDetection | None) -> TurnDetection | None:
    """A client's `server_vad`, or the settings `semantic_vad` shares with it. Thresholds are ignored."""
    if given is None:
        return None
    values = _mapping(given)
    known = before or TurnDetection()
    return TurnDetection(
        _within(values.get("prefix_padding_ms"), *PADDING_MS, known.prefix_padding_ms),
        _within(values.get("silence_duration_ms"), *SILENCE_MS, known.silence_duration_ms),
    )


def _within(value: Any, least: int, most: int, otherwise: int) -> int:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and value == value
    return round(min(max(value, least), most)) if is_number else otherwise
