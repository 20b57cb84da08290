"""What a server does with too much, too large, too slow, too long, with defects, and with those who leave."""

import asyncio
import base64
import json
import socket
import threading
import time
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from openai import APIStatusError, RateLimitError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from asr_doge.audio import SAMPLE_RATE
from asr_doge.serving import realtime, server, uploads
from tests.serving.clients import TRANSCRIPTION, Waveform, half_a_request, hold, idle, reply_to
from tests.serving.conftest import KEY, Running, running
from tests.waiting import until


def test_a_full_server_says_when_to_come_again_before_it_reads(strict: Running, recording: Path) -> None:
    large = b"\0" * 2_000_000
    with closing(half_a_request(strict)):
        until(lambda: strict.service.admission.is_full)
        with pytest.raises(RateLimitError) as busy:
            strict.client().audio.transcriptions.create(file=("large.wav", large), model="nano")
        assert 1 <= int(busy.value.response.headers["retry-after"]) <= 120
        assert busy.value.type == "rate_limit_error"
        assert reply_to(strict, "/readyz")[0] == 503
    until(lambda: idle(strict))  # who left made room
    assert strict.client().audio.transcriptions.create(file=recording, model="nano").text
    assert reply_to(strict, "/readyz")[0] == 200


def test_too_large_a_file(strict: Running) -> None:
    with pytest.raises(APIStatusError) as refused:
        strict.client().audio.transcriptions.create(file=("large.wav", b"\0" * 6_000_000), model="nano")
    assert refused.value.status_code == 413
    assert refused.value.code == "file_too_large"


def test_too_large_a_file_that_does_not_say_so(strict: Running) -> None:
    connection = HTTPConnection("127.0.0.1", strict.server.port, timeout=60)
    head = b'--X\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=X", "Authorization": f"Bearer {KEY}"}
    chunks = iter([head, *[b"\0" * 100_000] * 45])
    connection.request("POST", "/v1/audio/transcriptions", chunks, headers, encode_chunked=True)
    with closing(connection):
        assert connection.getresponse().status == 413


@pytest.mark.parametrize("way", ["too long in all", "silent"])
def test_a_slow_sender_is_not_waited_for(strict: Running, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    if way == "silent":
        monkeypatch.setattr(uploads, "STALL_SECONDS", 0.3)
    else:
        monkeypatch.setattr(strict.service.config, "upload_timeout", 0.3)
    with closing(half_a_request(strict)) as slow:
        assert b" 408 " in slow.recv(4096).splitlines()[0]
    until(lambda: idle(strict))


def test_a_silent_connection_is_closed(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.2)
    for sent in (b"", b"GET /healthz HTTP/1.1\r\nHost: loc"):
        with closing(socket.create_connection(("127.0.0.1", served.server.port), timeout=60)) as connection:
            connection.sendall(sent)
            assert connection.recv(100) == b""


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux closes such connections")
def test_who_takes_nothing_of_the_replies_is_let_go(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far more is asked for than the two ends of a connection hold, and nothing of it is read."""
    monkeypatch.setattr(server, "ACKNOWLEDGE_SECONDS", 0.2)
    connections = served.server.server_state.connections
    others = set(connections)  # which earlier clients may keep for half a minute
    with closing(socket.socket()) as greedy:
        greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        greedy.connect(("127.0.0.1", served.server.port))
        greedy.sendall(b"GET /docs-assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20)
        until(lambda: not connections <= others)
        until(lambda: connections <= others)
    assert reply_to(served, "/healthz")[0] == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_takes_its_work_along(
    served: Running, recording: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    cancelled = threading.Event()
    hold(served, monkeypatch, cancelled.is_set)
    content = recording.read_bytes()
    head = b'--X\r\nContent-Disposition: form-data; name="model"\r\n\r\nnano\r\n--X\r\n'
    head += b'Content-Disposition: form-data; name="stream"\r\n\r\n%s\r\n--X\r\n' % str(stream).lower().encode()
    body = head + b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + content + b"\r\n--X--\r\n"
    with closing(socket.create_connection(("127.0.0.1", served.server.port), timeout=60)) as connection:
        connection.sendall(
            b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: multipart/form-data; boundary=X\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        until(lambda: bool(served.service.worker.transcribers))
        (transcriber,) = served.service.worker.transcribers
    until(transcriber.cancelled.is_set)
    cancelled.set()
    until(lambda: idle(served))
    assert not served.service.worker.waiting
    assert reply_to(served, "/healthz")[0] == 200


def test_sessions_that_are_too_many_or_idle_are_closed_with_a_reason(
    strict: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"{strict.address.replace('http', 'ws')}/v1/realtime"
    headers = {"Authorization": f"Bearer {KEY}"}

    async def talk() -> tuple[int, int]:
        async with connect(address, additional_headers=headers) as first:
            await first.recv()
            async with connect(address, additional_headers=headers) as second:
                with pytest.raises(ConnectionClosed) as full:
                    await second.recv()
        monkeypatch.setattr(strict.service.config, "idle_timeout", 0.2)
        until(lambda: strict.service.admission.sessions == 0)
        async with connect(address, additional_headers=headers) as first:
            await first.recv()
            with pytest.raises(ConnectionClosed) as left_idle:
                await asyncio.wait_for(first.recv(), 60)
        assert full.value.rcvd is not None
        assert left_idle.value.rcvd is not None
        assert "audio" in left_idle.value.rcvd.reason
        return full.value.rcvd.code, left_idle.value.rcvd.code

    assert asyncio.run(talk()) == (1013, 1008)
    until(lambda: strict.service.admission.sessions == 0)


def test_an_idle_model_is_given_back_and_comes_back(recording: Path) -> None:
    with running(keep_alive=0.2) as one:
        text = one.client().audio.transcriptions.create(file=recording, model="nano").text
        until(lambda: not one.service.worker.is_loaded)
        assert json.loads(reply_to(one, "/readyz")[2])["model_loaded"] is False
        assert b"asr_doge_model_loaded 0.0" in reply_to(one, "/metrics")[2]
        assert one.client().audio.transcriptions.create(file=recording, model="nano").text == text


def test_a_defect_costs_its_own_request_and_tells_nothing(
    served: Running, recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are in one batch with the chunk that breaks the model."""
    transcriber = served.service.worker.loaded()
    recognize = transcriber.recognize_chunks

    def break_on_long(chunks: Any, *others: Any) -> Any:
        if any(len(chunk.samples) == 3 * SAMPLE_RATE for chunk in chunks):
            raise RuntimeError("CUDA out of memory at /home/somebody/model.py")
        return recognize(chunks, *others)

    soundfile.write(tmp_path / "bad.wav", np.random.default_rng(0).normal(0, 0.2, 3 * SAMPLE_RATE), SAMPLE_RATE)
    good = served.client().audio.transcriptions.create(file=recording, model="nano").text
    monkeypatch.setattr(transcriber, "recognize_chunks", break_on_long)
    replies: dict[str, Any] = {}

    def ask(path: Path) -> None:
        try:
            replies[path.name] = served.client().audio.transcriptions.create(file=path, model="nano").text
        except APIStatusError as error:
            replies[path.name] = error

    asking = [threading.Thread(target=ask, args=[path]) for path in (tmp_path / "bad.wav", recording)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(60)
    assert replies[recording.name] == good
    assert replies["bad.wav"].status_code == 500
    assert "CUDA" not in replies["bad.wav"].message
    assert replies["bad.wav"].request_id in replies["bad.wav"].message


def test_a_stopping_server_finishes_what_runs(
    speech: Waveform, recording: Path, file_text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request gets its text; so does a session, then close code 1012; the process of the decoder is gone."""
    replies: list[str] = []

    def ask(one: Running) -> None:
        replies.append(one.client().audio.transcriptions.create(file=recording, model="nano").text)

    async def talk(one: Running, asking: threading.Thread) -> tuple[list[str], int]:
        kinds = []
        async with connect(f"{one.address.replace('http', 'ws')}/v1/realtime") as connection:
            manual = {"type": "transcription", "audio": {"input": {"turn_detection": None}}}
            await connection.send(json.dumps({"type": "session.update", "session": manual}))
            pcm = (np.repeat(speech, 2)[: 3 * SAMPLE_RATE] * 32767).astype("<i2").tobytes()
            audio = base64.b64encode(pcm).decode()
            await connection.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
            try:
                while True:
                    kinds.append(json.loads(await asyncio.wait_for(connection.recv(), 60))["type"])
                    if kinds[-1].endswith(("delta", "tentative")) and not asking.ident:
                        hold(one, monkeypatch, lambda: one.server.should_exit)
                        asking.start()
                        await asyncio.to_thread(until, lambda: len(one.service.worker.transcribers) == 2)
                        one.server.should_exit = True
            except ConnectionClosed as closed:
                return kinds, closed.rcvd.code if closed.rcvd else 0

    with running() as one:
        asking = threading.Thread(target=ask, args=[one])
        kinds, code = asyncio.run(talk(one, asking))
    asking.join(60)
    assert kinds[-1] == f"{TRANSCRIPTION}.completed"
    assert code == 1012
    assert replies == [file_text]
    assert one.service.decoder.files.process.poll() is not None


def test_an_item_that_breaks_the_model_costs_itself_only(
    served: Running, speech: Waveform, monkeypatch: pytest.MonkeyPatch
) -> None:
    transcriber = served.service.worker.loaded()
    recognize = transcriber.recognize_chunks
    broken = [True]

    def break_once(*arguments: Any) -> Any:
        if broken:
            broken.pop()
            raise RuntimeError("CUDA out of memory at /home/somebody/model.py")
        return recognize(*arguments)

    async def talk() -> list[dict[str, Any]]:
        async with connect(f"{served.address.replace('http', 'ws')}/v1/realtime") as connection:
            audio = {"input": {"format": {"type": "audio/pcm", "rate": SAMPLE_RATE}, "turn_detection": None}}
            session = {"type": "transcription", "audio": audio}
            await connection.send(json.dumps({"type": "session.update", "session": session}))
            content = base64.b64encode((speech * 32767).astype("<i2").tobytes()).decode()
            ends = []
            for _ in range(2):
                await connection.send(json.dumps({"type": "input_audio_buffer.append", "audio": content}))
                await connection.send(json.dumps({"type": "input_audio_buffer.commit"}))
                while not (event := json.loads(await connection.recv()))["type"].endswith((".completed", ".failed")):
                    pass
                ends.append(event)
            return ends

    monkeypatch.setattr(transcriber, "recognize_chunks", break_once)
    failed, completed = asyncio.run(talk())
    assert failed["type"] == f"{TRANSCRIPTION}.failed"
    assert "CUDA" not in json.dumps(failed)
    assert completed["transcript"].split()[:4] == ["one", "two", "three", "four"]


def test_who_sends_faster_than_is_heard_is_read_no_further(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the model is at work on the first words: a quarter of an hour of sound, 40 MB, does not get through."""
    monkeypatch.setattr(realtime, "MOST_INBOX_CHARACTERS", 1 << 20)
    monkeypatch.setattr(realtime, "MOST_PENDING_SECONDS", 1)
    may_go_on = threading.Event()
    hold(served, monkeypatch, may_go_on.is_set)
    loud = np.random.default_rng(0).normal(0, 0.2, SAMPLE_RATE)
    append = {
        "type": "input_audio_buffer.append",
        "audio": base64.b64encode((loud * 32767).astype("<i2").tobytes()).decode(),
    }

    async def flood() -> None:
        async with connect(f"{served.address.replace('http', 'ws')}/v1/realtime") as connection:
            manual = {"type": "transcription", "audio": {"input": {"turn_detection": None}}}
            await connection.send(json.dumps({"type": "session.update", "session": manual}))
            message = json.dumps(append)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(repeated(connection, message, 40_000_000 // len(message)), 3)
            connection.transport.abort()

    asyncio.run(flood())
    may_go_on.set()
    until(lambda: served.service.admission.sessions == 0 and idle(served))


async def repeated(connection: ClientConnection, message: str, count: int) -> None:
    for _ in range(count):
        await connection.send(message)


def test_clients_that_vanish_leave_nothing_behind(served: Running, speech: Waveform) -> None:
    """Twenty sessions that end without a word, amid a turn."""
    audio = base64.b64encode((speech[: 2 * SAMPLE_RATE] * 32767).astype("<i2").tobytes()).decode()

    async def vanish() -> None:
        connection = await connect(f"{served.address.replace('http', 'ws')}/v1/realtime")
        await connection.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
        connection.transport.abort()

    async def all_of_them() -> None:
        await asyncio.gather(*(vanish() for _ in range(20)))

    asyncio.run(all_of_them())
    until(lambda: served.service.admission.sessions == 0 and idle(served))
    assert not served.service.worker.waiting
    before = time.monotonic()
    assert reply_to(served, "/healthz")[0] == 200
    assert time.monotonic() >= before
