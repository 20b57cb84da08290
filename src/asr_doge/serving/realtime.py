"""`/v1/realtime`: live audio over WebSocket, in the protocol of OpenAI's transcription sessions.

Promises: of a session, only reading and sending run on the event loop; its queues are bounded (backpressure: a client
that sends faster than its audio is processed is read more slowly); when a client disconnects, its work is cancelled; a
server that stops first transcribes the audio that it has.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, WebSocket
from fastapi.responses import JSONResponse
from starlette.websockets import WebSocketDisconnect

from asr_doge.audio.resampling import SAMPLE_RATE
from asr_doge.serving.access import KEY_PROTOCOL
from asr_doge.serving.errors import APIError
from asr_doge.serving.live_items import (
    Event,
    ItemAudio,
    ItemDropped,
    ItemEnded,
    ItemEvent,
    ItemWriter,
    Listener,
    new_event,
    new_id,
)
from asr_doge.serving.service import Service
from asr_doge.serving.session_settings import SessionSettings

POLICY, RESTART, TRY_LATER, INTERNAL = 1008, 1012, 1013, 1011
"""Close codes: policy violation by the client; the server stops, is full, or failed."""
MOST_INBOX_CHARACTERS = 8 << 20
"""Characters of messages in the inbox (two minutes of audio) at which reading from the client pauses."""
MOST_PENDING_SECONDS = 120
"""Audio that waits to be transcribed, at which taking messages from the inbox pauses."""
MOST_FAULTS = 20
"""Malformed messages after which the session is closed."""
SEND_SECONDS = 30.0
"""Seconds after which a client that reads nothing counts as disconnected."""
DRAIN_SECONDS = 10.0
"""Seconds in which a stopping server transcribes the audio that it has."""
PROTOCOL = "realtime"

_LOG = logging.getLogger("asr_doge")

router = APIRouter()


@router.websocket("/v1/realtime")
async def realtime(websocket: WebSocket) -> None:
    """A live session."""
    service: Service = websocket.app.state.service
    try:
        service.access.check(websocket)
    except APIError as error:
        service.metrics.refused.labels("access").inc()
        await websocket.send_denial_response(JSONResponse(error.body, error.status, error.headers))
        return
    offered = [name for name in websocket.scope["subprotocols"] if not name.startswith(KEY_PROTOCOL)]
    await websocket.accept(PROTOCOL if PROTOCOL in offered else None)
    try:
        with service.admission.session(), service.worker.session():
            await _Session(websocket, service).run()
    except APIError as error:
        await websocket.close(RESTART if service.admission.is_draining else TRY_LATER, error.message)


class _Closed(Exception):  # noqa: N818  # it ends a session and is no error
    """The session is to be closed with a code, for a reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class _Session:
    """One client's session, in three tasks: reading messages, detecting items, and writing their text."""

    def __init__(self, websocket: WebSocket, service: Service) -> None:
        self._websocket, self._service = websocket, service
        self._id = new_id("sess")
        model = websocket.query_params.get("model") or service.config.model
        settings = SessionSettings(service.config.model).updated(
            {"audio": {"input": {"transcription": {"model": model}}}}, service.models
        )
        self._listener = Listener(settings, service.models, self._id)
        self._writer = ItemWriter(service.worker, service.config.language, service.metrics.final_seconds.observe)
        self._inbox: asyncio.Queue[tuple[Event | None, int]] = asyncio.Queue()  # bounded by `_inbox_characters`
        self._item_events: asyncio.Queue[ItemEvent | None] = asyncio.Queue()  # bounded by `_pending_seconds`
        self._inbox_characters, self._pending_seconds = 0, 0.0
        self._progress = asyncio.Event()
        self._faults = 0
        self._sending = asyncio.Lock()

    async def run(self) -> None:
        """Run until the client disconnects, the server stops, or something fails."""
        work = asyncio.gather(self._listen(), self._write())
        reading = asyncio.create_task(self._read())
        stopping = asyncio.create_task(self._service.stopping.wait())
        all_tasks: set[asyncio.Future[Any]] = {work, reading, stopping}
        try:
            await self._send([new_event("session.created", session=self._listener.settings.describe(self._id))])
            done, _ = await asyncio.wait(all_tasks, return_when=asyncio.FIRST_COMPLETED)
            if done == {stopping}:
                await self._drain(reading, work)
            for task in done - {stopping}:
                task.result()
            closed = _Closed(RESTART, "the server is stopping")
        except _Closed as reason:
            closed = reason
        except WebSocketDisconnect:
            return
        except Exception:
            _LOG.exception("session %s failed", self._id)
            closed = _Closed(INTERNAL, "the server failed")
        finally:
            self._writer.cancel()
            for task in all_tasks:
                task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*all_tasks, return_exceptions=True)
        await self._close(closed)

    async def _drain(self, reading: "asyncio.Task[None]", work: "asyncio.Future[Any]") -> None:
        """Transcribe the audio received so far."""
        reading.cancel()
        self._inbox.put_nowait((None, 0))
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(work), DRAIN_SECONDS)

    async def _read(self) -> None:
        """Put the client's messages into the inbox."""
        idle_from = time.monotonic()
        idle_timeout = self._service.config.idle_timeout
        while True:
            left = idle_from + idle_timeout - time.monotonic()
            try:
                message = await asyncio.wait_for(self._websocket.receive(), max(left, 0.0))
            except asyncio.TimeoutError:
                raise _Closed(POLICY, f"no audio for {idle_timeout:.0f} s") from None
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1005))
            try:
                event = _parsed(message.get("text"))
            except ValueError as error:
                await self._fault(error, None)
                continue
            size = len(message["text"])
            self._inbox_characters += size
            self._inbox.put_nowait((event, size))
            await self._until(lambda: self._inbox_characters <= MOST_INBOX_CHARACTERS)
            if event.get("type") == "input_audio_buffer.append":
                idle_from = time.monotonic()  # only now, since a client that waits for the server is not idle

    async def _listen(self) -> None:
        """Turn the inbox into events for the client and item events."""
        loop = asyncio.get_running_loop()
        is_last = False
        while not is_last:
            await self._until(lambda: self._pending_seconds <= MOST_PENDING_SECONDS)
            event, size = await self._inbox.get()
            is_last = event is None
            try:
                if event is not None:
                    out = await loop.run_in_executor(self._service.listening, self._listener.handle, event)
                else:
                    out = self._listener.commit() if self._listener.is_open else []
            except ValueError as error:
                await self._fault(error, event)
                out = []
            await self._send([one for one in out if isinstance(one, dict)])
            for one in out:
                if not isinstance(one, dict):
                    self._pending_seconds += _seconds(one)
                    self._item_events.put_nowait(one)
                if isinstance(one, ItemEnded | ItemDropped):
                    self._writer.end_speech()
            self._inbox_characters -= size
            self._progress.set()
        self._item_events.put_nowait(None)

    async def _write(self) -> None:
        """Turn item events into text."""
        loop = asyncio.get_running_loop()
        is_last = False
        while not is_last:
            item_events = [await self._item_events.get()]
            while not self._item_events.empty():
                item_events.append(self._item_events.get_nowait())
            is_last = None in item_events
            work = [item_event for item_event in item_events if item_event is not None]
            await self._send(await loop.run_in_executor(self._service.live, self._writer.handle, work))
            self._pending_seconds -= sum(map(_seconds, work))
            self._progress.set()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._progress.clear()
            await self._progress.wait()

    async def _fault(self, error: ValueError, event: Event | None) -> None:
        """Send the error of a malformed message."""
        self._faults += 1
        if self._faults > MOST_FAULTS:
            raise _Closed(POLICY, "too many messages that cannot be understood")
        told = {"type": "invalid_request_error", "code": "invalid_event", "message": str(error), "param": None}
        await self._send([new_event("error", error=told | {"event_id": (event or {}).get("event_id")})])

    async def _send(self, events: list[Event]) -> None:
        async with self._sending:
            for event in events:
                text = json.dumps(event, ensure_ascii=False)
                try:
                    await asyncio.wait_for(self._websocket.send_text(text), SEND_SECONDS)
                except asyncio.TimeoutError:
                    raise _Closed(POLICY, "the client reads nothing") from None

    async def _close(self, closed: _Closed) -> None:
        with suppress(RuntimeError, WebSocketDisconnect, asyncio.TimeoutError):
            await asyncio.wait_for(self._websocket.close(closed.code, closed.reason), SEND_SECONDS)


def _parsed(text: Any) -> Event:
    """A message.

    Raises:
        ValueError: it is no JSON object.
    """
    if not isinstance(text, str):
        raise ValueError("send JSON as text; audio goes as base64 in input_audio_buffer.append")
    try:
        event = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("the message is no JSON") from None
    if not isinstance(event, dict):
        raise ValueError("the message is no JSON object")
    return event


def _seconds(item_event: ItemEvent) -> float:
    return len(item_event.samples) / SAMPLE_RATE if isinstance(item_event, ItemAudio) else 0.0
