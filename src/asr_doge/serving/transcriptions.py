"""`POST /v1/audio/transcriptions`: a file to its transcript, at once or as it is made.

Promises: the text is what the command line gives for the same file; work runs in threads and in the model's own, never
on the event loop; when a client disconnects, its work is cancelled.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from asr_doge.audio.reading import check_long_enough
from asr_doge.errors import AudioError, DamagedAudioError
from asr_doge.inference.results import FailedTranscription, Segment, Transcription
from asr_doge.inference.sources import ChunkSource
from asr_doge.inference.stream import StreamTranscriber
from asr_doge.serving.errors import APIError, failure
from asr_doge.serving.form_fields import TranscriptionRequest, parse_fields
from asr_doge.serving.openapi import TRANSCRIPTION_SCHEMA
from asr_doge.serving.replies import delta_event, done_event, reply, warning_header
from asr_doge.serving.service import Service
from asr_doge.serving.session_settings import Chunking
from asr_doge.serving.uploads import close_form, read_form, recording_of
from asr_doge.serving.worker import WorkerTranscriber

KEEP_ALIVE_SECONDS = 10.0
"""Seconds without an event after which a comment is sent, so that no proxy closes the connection as idle."""

router = APIRouter(prefix="/v1/audio")


@dataclass(frozen=True)
class _Work:
    """A file to transcribe; runs in a thread."""

    service: Service
    request: TranscriptionRequest
    transcriber: WorkerTranscriber
    file: BinaryIO
    name: str

    def whole(self) -> Transcription:
        """Transcribe the whole file.

        Raises:
            AudioError: it cannot be read.
        """
        chunking = self.request.chunking or ("auto" if self.transcriber.cut_at_pauses else None)
        (result,) = self.transcriber.transcribe_each([self._chunks(chunking)])
        if isinstance(result, FailedTranscription):
            raise result.error
        return replace(result, notes=(*result.notes, *self.request.notes))

    def streamed(self, send: Callable[[dict[str, Any]], None]) -> None:
        """Transcribe the file cut at pauses, and send an event for each segment as it ends.

        Raises:
            AudioError: it cannot be read.
        """
        live = StreamTranscriber(self.transcriber)
        notes = list(self.request.notes)
        incomplete = None
        try:
            for samples, chunk in self._chunks(self.request.chunking or "auto").read(notes.append):
                if chunk is not None:  # before it is recognized: if it is too short, it is all there is
                    check_long_enough(samples, self.transcriber.sampling_rate, self.name)
                update = live.feed_chunk(samples, chunk)
                if update is not None:
                    self._send(update.finished, live, send)
        except DamagedAudioError as error:  # the readable part is transcribed all the same
            if not live.seconds:
                raise
            incomplete = str(error)
        check_long_enough(
            round(live.seconds * self.transcriber.sampling_rate), self.transcriber.sampling_rate, self.name
        )
        self._send(live.finish().finished, live, send)
        result = replace(live.transcription(), notes=tuple(notes), incomplete=incomplete)
        send(done_event(result, self.request))

    def _send(
        self, finished: tuple[Segment, ...], live: StreamTranscriber, send: Callable[[dict[str, Any]], None]
    ) -> None:
        is_first = len(finished) == len(live.transcription().segments)
        for segment in finished:
            text = segment.text if is_first else f" {segment.text}"
            send(delta_event(text, segment.words, self.request.with_logprobs))
            is_first = False

    def _chunks(self, chunking: Chunking) -> ChunkSource:
        decoder, cancelled = self.service.decoder, self.transcriber.cancelled
        return ChunkSource(
            lambda on_note: decoder.chunks(self.file, self.name, cancelled, on_note, chunking), self.name
        )


@router.post("/transcriptions", openapi_extra=TRANSCRIPTION_SCHEMA, response_model=None)
async def transcribe(request: Request) -> Response:
    """Transcribe a recording."""
    service: Service = request.app.state.service
    with ExitStack() as stack:
        stack.enter_context(service.admission.request())
        form = await read_form(request, service.most_bytes, service.config.upload_timeout)
        stack.callback(close_form, form)
        wanted = parse_fields(form, service.models, service.worker.facts.has_word_times)
        file, name = recording_of(form, service.most_bytes)
        language = wanted.language or service.config.language
        transcriber = WorkerTranscriber(service.worker, language, wanted.hotwords)
        stack.callback(transcriber.cancel)
        work = _Work(service, wanted, transcriber, file, name)
        if wanted.stream:
            return _EventResponse(_events(work, request.state.request_id), stack.pop_all())
        result = await _until_gone(request, work)
    body = reply(result, wanted, service.config.model, service.worker.facts.token_ids)
    return PlainTextResponse(body, headers=warning_header(result)) if isinstance(body, str) else JSONResponse(body)


@router.post("/translations", response_model=None)
async def translate() -> Response:
    """Refuse: models here transcribe only."""
    raise APIError(
        400,
        "this server does not translate: transcribe with /v1/audio/transcriptions, and translate its text",
        code="unsupported",
    )


class _EventResponse(StreamingResponse):
    """A streamed reply that releases its resources even if the client disconnects before the first event."""

    def __init__(self, events: AsyncIterator[str], held: ExitStack) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            await super().__call__(scope, receive, send)


async def _until_gone(request: Request, work: _Work) -> Transcription:
    """The transcript, unless the client disconnects first.

    Raises:
        APIError: the recording cannot be read.
        ClientDisconnect: the client disconnected.
    """
    task = asyncio.get_running_loop().run_in_executor(work.service.files, work.whole)
    watch = asyncio.create_task(_gone(request))
    both: set[asyncio.Future[Any]] = {task, watch}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    finally:
        watch.cancel()
        if not task.done():
            work.transcriber.cancel()
            with suppress(Exception, asyncio.CancelledError):
                await asyncio.shield(task)
    if work.transcriber.cancelled.is_set():
        raise ClientDisconnect
    try:
        return task.result()
    except AudioError as error:
        raise _unreadable(error) from None


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _unreadable(error: AudioError) -> APIError:
    return APIError(400, str(error), param="file", code="unreadable_audio")


async def _events(work: _Work, request_id: str) -> AsyncIterator[str]:
    """Server-sent events of a streamed reply, and comments where nothing happens."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()  # bounded by the text of the longest recording

    def send(event: dict[str, Any] | None) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, event)

    def run() -> None:
        try:
            work.streamed(send)
        except AudioError as error:
            send(_unreadable(error).body)
        except Exception:
            if not work.transcriber.cancelled.is_set():
                logging.getLogger("asr_doge").exception("request %s failed", request_id)
                send(failure(request_id).body)
        finally:
            send(None)

    task = loop.run_in_executor(work.service.files, run)
    try:
        while True:
            try:
                event = await asyncio.wait_for(queue.get(), KEEP_ALIVE_SECONDS)
            except asyncio.TimeoutError:
                yield ": keep-alive\n\n"
                continue
            if event is None:
                return
            kind = "event: error\n" if "error" in event else ""
            yield f"{kind}data: {json.dumps(event, ensure_ascii=False)}\n\n"
    finally:
        work.transcriber.cancel()
        with suppress(Exception, asyncio.CancelledError):
            await asyncio.shield(task)
