"""A live session without its network: turn a client's messages into items of audio, and items into text.

An item, OpenAI's word, is a stretch of audio that gets a transcript: a turn, or what the client commits.
Promises: `Listener` turns messages into `Event`s for the client and `ItemEvent`s, without the model; `ItemWriter` turns
`ItemEvent`s into `Event`s with it. Each works in order, and the two may run at the same time. The deltas of an item
only grow; its `completed` holds the text that its audio would have as a file.
"""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from asr_doge.audio.resampling import SAMPLE_RATE
from asr_doge.inference.results import Transcription
from asr_doge.inference.stream import StreamTranscriber, StreamUpdate
from asr_doge.serving.live_audio import AudioInput
from asr_doge.serving.replies import logprobs, usage, word_of
from asr_doge.serving.session_settings import SessionSettings
from asr_doge.serving.turns import TurnAudio, TurnDetector, TurnEvent, TurnStarted, TurnStopped
from asr_doge.serving.worker import ModelWorker, WorkerTranscriber

_LOG = logging.getLogger("asr_doge")

Event = dict[str, Any]
"""An event of OpenAI's protocol, as JSON: a client's message or a reply to it."""
TRANSCRIPTION = "conversation.item.input_audio_transcription"
TENTATIVE = "asr_doge.tentative"
"""Our own event: the words after the deltas, which may still change."""


@dataclass(frozen=True)
class ItemStarted:
    """An item begins `at` this time of the stream, in seconds."""

    item_id: str
    at: float
    settings: SessionSettings


@dataclass(frozen=True)
class ItemAudio:
    """More `[samples]` of the item."""

    samples: NDArray[np.float32]


@dataclass(frozen=True)
class ItemEnded:
    """The item is complete, at the monotonic time `since`."""

    since: float


@dataclass(frozen=True)
class ItemDropped:
    """The client discarded the item."""


ItemEvent = ItemStarted | ItemAudio | ItemEnded | ItemDropped


class Listener:
    """Turns the messages of one client into events for it and `ItemEvent`s, in order.

    Args:
        settings: the initial settings.
        models: names under which the model may be requested.
        session_id: id of the session.
    """

    def __init__(self, settings: SessionSettings, models: Sequence[str], session_id: str) -> None:
        self.settings, self.session_id = settings, session_id
        self._models = models
        self._input = AudioInput(settings.format)
        self._turns = TurnDetector(settings.turn_detection) if settings.turn_detection else None
        self._heard = 0  # samples received
        self._item: str | None = None  # id of the open item
        self._previous: str | None = None

    def handle(self, message: Event) -> list[Event | ItemEvent]:
        """The events that follow from a message.

        Raises:
            ValueError: the message is malformed; the error says why.
        """
        kind = message.get("type")
        if kind == "input_audio_buffer.append":
            audio = message.get("audio")
            if not isinstance(audio, str):
                raise ValueError("audio must be base64")
            try:
                return self._hear(self._input.read(audio))
            except ValueError:
                raise ValueError("audio is no base64") from None
        if kind == "input_audio_buffer.commit":
            return self.commit()
        if kind == "input_audio_buffer.clear":
            return self._clear()
        if kind in ("session.update", "transcription_session.update"):
            return self._update(message, f"{str(kind).partition('.')[0]}.updated")
        raise ValueError(f"'{str(kind)[:60]}' is no event of a transcription session")

    def commit(self) -> list[Event | ItemEvent]:
        """End the open item; if none is open, an empty item is committed."""
        if self._turns is not None:
            return self._of_turns(self._turns.stop())
        return [*self._start(self._heard), *self._end()]

    @property
    def is_open(self) -> bool:
        """Whether an item is open."""
        return self._item is not None

    def _hear(self, samples: NDArray[np.float32]) -> list[Event | ItemEvent]:
        if not len(samples):
            return []
        self._heard += len(samples)
        if self._turns is not None:
            return self._of_turns(self._turns.feed(samples))
        return [*self._start(self._heard - len(samples)), ItemAudio(samples)]

    def _of_turns(self, turns: Sequence[TurnEvent]) -> list[Event | ItemEvent]:
        out: list[Event | ItemEvent] = []
        for turn in turns:
            if isinstance(turn, TurnStarted):
                out += self._start(turn.at)
                out.append(self._event("input_audio_buffer.speech_started", audio_start_ms=_ms(turn.at)))
            elif isinstance(turn, TurnAudio):
                out.append(ItemAudio(turn.samples))
            elif isinstance(turn, TurnStopped):
                out.append(self._event("input_audio_buffer.speech_stopped", audio_end_ms=_ms(turn.at)))
                out += self._end()
        return out

    def _start(self, at: int) -> list[Event | ItemEvent]:
        if self._item is not None:
            return []
        self._item = new_id("item")
        return [ItemStarted(self._item, at / SAMPLE_RATE, self.settings)]

    def _end(self) -> list[Event | ItemEvent]:
        committed = self._event("input_audio_buffer.committed", previous_item_id=self._previous)
        self._previous, self._item = self._item, None
        return [committed, ItemEnded(time.monotonic())]

    def _clear(self) -> list[Event | ItemEvent]:
        dropped: list[Event | ItemEvent] = [ItemDropped()] if self._item is not None else []
        self._item = None
        if self._turns is not None:
            self._turns.clear()
        return [*dropped, new_event("input_audio_buffer.cleared")]

    def _update(self, message: Event, answer: str) -> list[Event | ItemEvent]:
        session = message.get("session")
        if not isinstance(session, dict):
            raise ValueError("session must be an object")
        if session.get("type", "transcription") != "transcription":
            raise ValueError("this server has transcription sessions only: set session.type to transcription")
        before, self.settings = self.settings, self.settings.updated(session, self._models)
        out: list[Event | ItemEvent] = []
        if self.settings.format != before.format:
            out += self._hear(self._input.finish())
            self._input = AudioInput(self.settings.format)
        if self.settings.turn_detection != before.turn_detection:
            out += self.commit() if self.is_open else []
            detection = self.settings.turn_detection
            self._turns = TurnDetector(detection, self._heard) if detection is not None else None
        return [*out, new_event(answer, session=self.settings.describe(self.session_id))]

    def _event(self, kind: str, **values: Any) -> Event:
        return new_event(kind, item_id=self._item, **values)


class ItemWriter:
    """Turns `ItemEvent`s into events for the client.

    Args:
        worker: runs the model.
        language: used if a session names none.
        on_final: called with the seconds from an item's end to its text.
    """

    def __init__(
        self,
        worker: ModelWorker,
        language: str | None,
        on_final: Callable[[float], None],
    ) -> None:
        self._worker, self._language, self._on_final = worker, language, on_final
        self._transcriber: WorkerTranscriber | None = None
        self._cancelled = False
        self._item = ItemStarted("", 0.0, SessionSettings(""))
        self._live: StreamTranscriber | None = None
        self._deltas = Deltas()
        self._tentative = ""

    def handle(self, item_events: Sequence[ItemEvent]) -> list[Event]:
        """The events that follow from `item_events`; consecutive audio is transcribed at once."""
        events: list[Event] = []
        waiting: list[NDArray[np.float32]] = []
        for item_event in item_events:
            if isinstance(item_event, ItemAudio):
                waiting.append(item_event.samples)
                continue
            events += self._hear(waiting, hypothesis=False)
            waiting = []
            if isinstance(item_event, ItemStarted):
                self._start(item_event)
            elif isinstance(item_event, ItemEnded):
                events += self._finish(item_event)
            else:
                self._drop()
        return events + self._hear(waiting, hypothesis=True)

    def end_speech(self) -> None:
        """Cancel hypotheses of the current item, whose end is known but may not have been handled yet."""
        if self._transcriber is not None:
            self._transcriber.end_speech()

    def cancel(self) -> None:
        """Stop, since the client has disconnected: chunks that wait for the model are cancelled."""
        self._cancelled = True
        if self._transcriber is not None:
            self._transcriber.cancel()

    def _start(self, item: ItemStarted) -> None:
        language = item.settings.language or self._language
        transcriber = WorkerTranscriber(self._worker, language, item.settings.hotwords, kind="ended")
        self._transcriber = transcriber
        if self._cancelled:
            transcriber.cancel()
        self._item, self._live = item, StreamTranscriber(transcriber)
        self._deltas, self._tentative = Deltas(), ""

    def _hear(self, waiting: Sequence[NDArray[np.float32]], hypothesis: bool) -> list[Event]:
        if self._live is None or not waiting:
            return []
        try:
            update = self._live.feed(np.concatenate(waiting), hypothesis)
        except CancelledError:  # the client has disconnected
            raise
        except Exception:
            return [self._failed()]
        return self._events_of(update) if update is not None else []

    def _finish(self, end: ItemEnded) -> list[Event]:
        if self._live is None:  # it has failed
            return []
        try:
            events = self._events_of(self._live.finish())
        except CancelledError:
            raise
        except Exception:
            return [self._failed()]
        events.append(self._completed(self._live.transcription()))
        self._drop()
        self._on_final(time.monotonic() - end.since)
        return events

    def _drop(self) -> None:
        """Drop the current item."""
        self._live = None
        if self._transcriber is not None:
            self._transcriber.cancel()

    def _events_of(self, update: StreamUpdate) -> list[Event]:
        events = []
        if delta := self._deltas.take(update):
            events.append(self._event(f"{TRANSCRIPTION}.delta", delta=delta))
        if update.tentative != self._tentative:
            self._tentative = update.tentative
            events.append(self._event(TENTATIVE, text=update.tentative))
        return events

    def _completed(self, result: Transcription) -> Event:
        words = [word for segment in result.segments for word in segment.words]
        language, settings = self._item.settings.language, self._item.settings
        event = self._event(
            f"{TRANSCRIPTION}.completed",
            transcript=result.text,
            usage=usage(result.duration),
            languages=[{"code": language}] if language else [],
            words=[word_of(word, self._item.at) for word in words],
        )
        return event | ({"logprobs": logprobs(words)} if settings.with_logprobs else {})

    def _failed(self) -> Event:
        """Drop the item after an error; the session continues."""
        self._drop()
        _LOG.exception("item %s failed", self._item.item_id)
        error = {"type": "server_error", "code": "transcription_failed", "param": None}
        message = f"the server failed; its log has the reason under {self._item.item_id}"
        return self._event(f"{TRANSCRIPTION}.failed", error=error | {"message": message})

    def _event(self, kind: str, **values: Any) -> Event:
        return new_event(kind, item_id=self._item.item_id, content_index=0, **values)


class Deltas:
    """The text of an item in increments, for clients that concatenate them.

    Words that were sent cannot be changed: of a segment's final text, only words beyond their number are sent.
    """

    def __init__(self) -> None:
        self._open = 0  # number of words sent of the open segment
        self._is_begun = False

    def take(self, update: StreamUpdate) -> str:
        """The text to append; may be empty."""
        finished = [word for segment in update.finished for word in segment.text.split()]
        committed = update.committed.split()
        words = finished[self._open :] if update.finished else []
        known = self._open if not update.finished else 0
        words += committed[known:]
        self._open = max(known, len(committed))
        if not words:
            return ""
        joined = (" " if self._is_begun else "") + " ".join(words)
        self._is_begun = True
        return joined


def new_event(kind: str, **values: Any) -> Event:
    """An event from the server."""
    return {"type": kind, "event_id": new_id("event")} | values


def new_id(kind: str) -> str:
    """A unique id."""
    return f"{kind}_{uuid4().hex[:20]}"


def _ms(samples: int) -> int:
    return round(1000 * samples / SAMPLE_RATE)
