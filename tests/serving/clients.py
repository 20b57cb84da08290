"""What clients of a server ask for, whole and in part, and the state that they leave it in."""

import socket
from collections.abc import Callable
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.serving.conftest import KEY, Running
from tests.waiting import until

Waveform = NDArray[np.float32]

TRANSCRIPTION = "conversation.item.input_audio_transcription"


def reply_to(one: Running, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    request = Request(one.address + path, headers={"Authorization": f"Bearer {KEY}"} | headers)
    try:
        with urlopen(request, timeout=60) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except HTTPError as error:
        return error.code, dict(error.headers), error.read()


def half_a_request(one: Running, length: int = 100_000) -> socket.socket:
    """A client that has sent the head of its form, and a part of the file."""
    connection = socket.create_connection(("127.0.0.1", one.server.port), timeout=60)
    connection.sendall(
        b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: multipart/form-data; boundary=X\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n"
        % (KEY.encode(), length)
        + b'--X\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n1234'
    )
    return connection


def idle(one: Running) -> bool:
    return not one.service.worker.transcribers and not one.service.admission.is_full


def hold(one: Running, monkeypatch: pytest.MonkeyPatch, until_when: Callable[[], bool]) -> None:
    """Let the model begin nothing before something has happened."""
    transcriber = one.service.worker.loaded()
    recognize = transcriber.recognize_chunks

    def wait_first(*arguments: Any) -> Any:
        until(until_when)
        return recognize(*arguments)

    monkeypatch.setattr(transcriber, "recognize_chunks", wait_first)
