"""Read the form of a request within limits.

Promises: an upload that is too large or too slow is refused; its file is on disk without a name, so that it is gone
whatever happens.
"""

import asyncio
from collections.abc import AsyncGenerator
from typing import BinaryIO

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from asr_doge.serving.errors import APIError

STALL_SECONDS = 30.0
"""Seconds without data after which an upload fails."""
FIELD_BYTES = 1 << 20
"""Largest size of all other fields together, and of one field."""
MOST_FIELDS = 1000


async def read_form(request: Request, most_bytes: int, timeout: float) -> FormData:
    """The fields of a multipart form, for `close_form` when done.

    Args:
        request: of which nothing was read.
        most_bytes: of the file.
        timeout: seconds that it may take.

    Raises:
        APIError: 400, 408 or 413.
        ClientDisconnect: the client disconnected.
    """
    kind = request.headers.get("content-type", "")
    if not kind.lower().startswith("multipart/form-data"):
        raise APIError(400, "send the file as multipart/form-data, as in curl -F file=@speech.wav", param="file")
    check_length(request, most_bytes)
    parser = MultiPartParser(
        request.headers, _limited(request, most_bytes), max_files=1, max_fields=MOST_FIELDS, max_part_size=FIELD_BYTES
    )
    try:
        return await asyncio.wait_for(parser.parse(), timeout)
    except asyncio.TimeoutError:
        raise _too_slow(timeout) from None
    except MultiPartException as error:
        raise APIError(400, f"the form cannot be read: {error.message}", code="invalid_form") from None
    except (KeyError, ValueError):
        raise APIError(
            400, "the form cannot be read: its boundary or headers are malformed", code="invalid_form"
        ) from None


def check_length(request: Request, most_bytes: int) -> None:
    """Refuse a request whose Content-Length is too large.

    Raises:
        APIError: 413.
    """
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > most_bytes + FIELD_BYTES:
        raise _too_large(most_bytes)


async def _limited(request: Request, most_bytes: int) -> AsyncGenerator[bytes, None]:
    """Yield the body as it arrives, within the limits."""
    received = 0
    body = request.stream()
    while True:
        try:
            chunk = await asyncio.wait_for(anext(body), STALL_SECONDS)
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError:
            raise _too_slow(STALL_SECONDS) from None
        received += len(chunk)
        if received > most_bytes + FIELD_BYTES:
            raise _too_large(most_bytes)
        yield chunk


def _too_large(most_bytes: int) -> APIError:
    return APIError(
        413,
        f"the file is larger than {most_bytes / 1e6:.0f} MB, which is the most: compress it (Opus, MP3) or cut it",
        param="file",
        code="file_too_large",
    )


def _too_slow(seconds: float) -> APIError:
    return APIError(408, f"the file did not arrive within {seconds:.0f} s: send it again", param="file", code="timeout")


def close_form(form: FormData) -> None:
    """Close the form's file, which removes it."""
    for _, value in form.multi_items():
        if isinstance(value, UploadFile):
            value.file.close()


def recording_of(form: FormData, most_bytes: int) -> tuple[BinaryIO, str]:
    """The form's file, which has a descriptor, and its name.

    Raises:
        APIError: 400, 413.
    """
    upload = form.get("file")
    if not isinstance(upload, UploadFile):
        raise APIError(400, "no file in the form: send one as the field `file`", param="file", code="missing_file")
    name = "".join(character if character.isprintable() else "?" for character in upload.filename or "recording")[-80:]
    if not upload.size:
        raise APIError(400, f"{name} is empty (0 bytes): send it again", param="file", code="empty_file")
    if upload.size > most_bytes:
        raise _too_large(most_bytes)
    upload.file.rollover()  # type: ignore[attr-defined]  # it is a SpooledTemporaryFile
    upload.file.flush()
    return upload.file, name


async def linger(request: Request, seconds: float = 2.0) -> None:
    """Read on for a moment after a refusal; a client that is still sending would otherwise see a connection reset."""
    try:
        await asyncio.wait_for(_drained(request), seconds)
    except (asyncio.TimeoutError, ClientDisconnect):
        return


async def _drained(request: Request) -> None:
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return
