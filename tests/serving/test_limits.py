"""What a server does with too much, too large, too slow, too long, and with those who may not or who leave."""

import asyncio
import base64
import json
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import av
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from openai import APIError, APIStatusError, AuthenticationError, BadRequestError, RateLimitError
from starlette.formparsers import MultiPartParser
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from asr_doge.audio import SAMPLE_RATE, file_decoding
from asr_doge.audio.file_decoding import FileDecoder
from asr_doge.audio.reading import read_blocks
from asr_doge.errors import AudioError
from asr_doge.serving import realtime, server, uploads
from tests.scaling.conftest import python_path
from tests.scaling.fragile.sitecustomize import HANGS
from tests.serving.conftest import KEY, Running, running
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
    return not one.service.worker.callers and not one.service.admission.is_full


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
        monkeypatch.setattr(uploads, "SILENCE_SECONDS", 0.3)
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
    monkeypatch.setattr(server, "UNTAKEN_SECONDS", 0.2)
    connections = served.server.server_state.connections
    others = set(connections)  # which earlier clients may keep for half a minute
    with closing(socket.socket()) as greedy:
        greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        greedy.connect(("127.0.0.1", served.server.port))
        greedy.sendall(b"GET /docs-assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20)
        until(lambda: not connections <= others)
        until(lambda: connections <= others)
    assert reply_to(served, "/healthz")[0] == 200


def hold(one: Running, monkeypatch: pytest.MonkeyPatch, until_when: Callable[[], bool]) -> None:
    """Let the model begin nothing before something has happened."""
    transcriber = one.service.worker.loaded()
    recognize = transcriber.recognize_chunks

    def wait_first(*arguments: Any) -> Any:
        until(until_when)
        return recognize(*arguments)

    monkeypatch.setattr(transcriber, "recognize_chunks", wait_first)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_takes_its_work_along(
    served: Running, recording: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    has_left = threading.Event()
    hold(served, monkeypatch, has_left.is_set)
    content = recording.read_bytes()
    head = b'--X\r\nContent-Disposition: form-data; name="model"\r\n\r\nnano\r\n--X\r\n'
    head += b'Content-Disposition: form-data; name="stream"\r\n\r\n%s\r\n--X\r\n' % str(stream).lower().encode()
    body = head + b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + content + b"\r\n--X--\r\n"
    with closing(socket.create_connection(("127.0.0.1", served.server.port), timeout=60)) as connection:
        connection.sendall(
            b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: multipart/form-data; boundary=X\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        until(lambda: bool(served.service.worker.callers))
        (caller,) = served.service.worker.callers
    until(caller.has_left.is_set)
    has_left.set()
    until(lambda: idle(served))
    assert not served.service.worker.waiting
    assert reply_to(served, "/healthz")[0] == 200


def test_documentation_and_probes_answer_while_a_job_runs(
    served: Running, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()
    hold(served, monkeypatch, answered.is_set)
    replies: list[str] = []
    job = threading.Thread(
        target=lambda: replies.append(served.client().audio.transcriptions.create(file=recording, model="nano").text)
    )
    job.start()
    until(lambda: bool(served.service.worker.callers))
    for path in ("/docs", "/openapi.json", "/healthz", "/readyz", "/metrics", "/"):
        assert reply_to(served, path)[0] == 200, path
    assert served.service.worker.callers
    answered.set()
    job.join(60)
    assert len(replies) == 1


def test_a_probe_may_ask_for_the_head_only(served: Running) -> None:
    for path in ("/healthz", "/readyz", "/"):
        connection = HTTPConnection("127.0.0.1", served.server.port, timeout=60)
        with closing(connection):
            connection.request("HEAD", path)
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (200, b"")


def test_the_wrong_method_is_told_the_right_one(served: Running) -> None:
    status, headers, _ = reply_to(served, "/v1/audio/transcriptions")
    assert (status, headers["allow"]) == (405, "POST")


def test_the_documentation_loads_nothing_from_elsewhere_and_needs_no_key(strict: Running) -> None:
    document = reply_to(strict, "/docs", Authorization="")[2].decode()
    parts = re.findall(r'(?:src|href)="([^"]+)"', document)
    assert sum(part.endswith((".js", ".css")) for part in parts) == 2
    for part in parts:
        assert part.startswith(("/", "data:"))
        assert part.startswith("data:") or reply_to(strict, part, Authorization="")[0] == 200


def test_the_interface_describes_its_form(served: Running) -> None:
    described = json.loads(reply_to(served, "/openapi.json")[2])
    form = described["paths"]["/v1/audio/transcriptions"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert {"file", "model", "keywords[]", "stream"} <= set(form["schema"]["properties"])


@pytest.mark.parametrize("key", ["", "sk-another", KEY + "x", "ключ"])
def test_nothing_without_the_key(strict: Running, recording: Path, key: str) -> None:
    status, headers, body = reply_to(strict, "/v1/models", Authorization=f"Bearer {key}".encode().decode("latin-1"))
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert json.loads(body)["error"]["code"] == "invalid_api_key"
    assert reply_to(strict, "/metrics", Authorization="")[0] == 401
    assert reply_to(strict, "/healthz", Authorization="")[0] == 200
    if key.isascii() and key:
        with pytest.raises(AuthenticationError):
            strict.client(api_key=key).audio.transcriptions.create(file=recording, model="nano")


def test_a_session_needs_the_key_before_it_is_one(strict: Running) -> None:
    address = f"{strict.address.replace('http', 'ws')}/v1/realtime?intent=transcription"

    async def refused(**options: Any) -> int:
        with pytest.raises(InvalidStatus) as answer:
            async with connect(address, **options):
                pass
        return answer.value.response.status_code

    async def accepted(**options: Any) -> str | None:
        async with connect(address, **options) as connection:
            assert json.loads(await connection.recv())["type"] == "session.created"
            return connection.subprotocol

    right = {"Authorization": f"Bearer {KEY}"}
    assert asyncio.run(refused()) == 401
    assert asyncio.run(refused(additional_headers={"Authorization": "Bearer wrong"})) == 401
    assert asyncio.run(refused(additional_headers=right, origin="https://evil.example")) == 403
    until(lambda: strict.service.admission.sessions == 0)
    assert asyncio.run(accepted(additional_headers=right, origin="https://example.org")) is None
    until(lambda: strict.service.admission.sessions == 0)
    browser = ["realtime", f"openai-insecure-api-key.{KEY}"]
    assert asyncio.run(accepted(subprotocols=browser, origin=strict.address)) == "realtime"
    until(lambda: strict.service.admission.sessions == 0)


def test_pages_of_other_sites_are_kept_out_unless_allowed(served: Running, strict: Running) -> None:
    status, headers, body = reply_to(served, "/v1/models", Origin="https://evil.example")
    assert (status, json.loads(body)["error"]["type"]) == (403, "permission_error")
    assert "access-control-allow-origin" not in headers
    assert reply_to(served, "/v1/models", Origin=served.address)[0] == 200
    assert reply_to(served, "/v1/models", Host="rebound.example:8000")[0] == 403
    status, headers, _ = reply_to(strict, "/v1/models", Origin="https://example.org")
    assert (status, headers["access-control-allow-origin"]) == (200, "https://example.org")


def test_openais_client_in_a_page_may_send_its_own_headers(strict: Running) -> None:
    """What its JavaScript client makes a browser ask beforehand, which it does without the key."""
    own = "authorization,x-stainless-arch,x-stainless-lang,x-stainless-os,x-stainless-retry-count,x-stainless-runtime"
    headers = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    connection = HTTPConnection("127.0.0.1", strict.server.port, timeout=60)
    with closing(connection):
        connection.request(
            "OPTIONS", "/v1/audio/transcriptions", headers=headers | {"Access-Control-Request-Headers": own}
        )
        answer = connection.getresponse()
        allowed = answer.headers["access-control-allow-headers"].replace(" ", "").split(",")
    assert answer.status == 200
    assert set(own.split(",")) <= set(allowed)


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


def hostile(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.wav"
    if kind == "much silence":
        soundfile.write(path, np.zeros(600 * 8000, dtype=np.int16), 8000, format="FLAC")
    elif kind == "cut":
        with av.open(str(path), "w", format="mp4") as output:
            stream = output.add_stream("aac", rate=16000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 160_000), dtype=np.float32), "fltp", "mono")
            frame.sample_rate = 16000
            output.mux([*stream.encode(frame), *stream.encode(None)])
        path.write_bytes(path.read_bytes()[:-400])
    elif kind == "a playlist":
        path.write_text("#EXTM3U\n/etc/passwd\nhttp://127.0.0.1/secret\n")
    return path


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("much silence", "longer than 60 s"),
        ("cut", "truncated"),  # an MP4 without its index, which stands at the end
        ("a playlist", "not audio"),
    ],
)
def test_a_hostile_file_costs_itself_only(
    strict: Running, recording: Path, tmp_path: Path, kind: str, why: str
) -> None:
    path = hostile(tmp_path, kind)
    with pytest.raises(BadRequestError, match=why) as refused:
        strict.client().audio.transcriptions.create(file=path, model="nano")
    assert path.name in refused.value.message
    assert str(tmp_path) not in refused.value.message
    assert strict.client().audio.transcriptions.create(file=recording, model="nano").text


@pytest.fixture
def truncated(recording: Path, tmp_path: Path) -> Path:
    """A WAV that promises more than it holds, which shows at its end: the first sentence, and a part of the pause."""
    samples, rate = soundfile.read(recording, dtype="int16")
    path = tmp_path / "cut.wav"
    path.write_bytes(recording.read_bytes()[: 44 + 2 * (first_pause(samples, rate) + rate)])
    return path


def first_pause(samples: NDArray[np.int16], rate: int) -> int:
    """Where the first second of nothing but the fixture's faint noise begins."""
    sounds = np.cumsum(np.abs(samples) > 6)
    return int(np.argmax(sounds[rate:] == sounds[:-rate])) + 1


@pytest.mark.parametrize("stream", [False, True])
def test_of_a_truncated_file_there_is_what_can_be_read(strict: Running, truncated: Path, stream: bool) -> None:
    fields: dict[str, Any] = {"file": truncated, "model": "nano", "stream": stream}
    answer = strict.client().audio.transcriptions.create(**fields)
    reply = list(answer)[-1].to_dict() if stream else answer.to_dict()
    assert reply["text"] == "one two three four"
    (warning,) = reply["warnings"]
    assert warning.startswith("cut.wav is truncated or corrupt")


def test_replies_in_text_warn_in_a_header(strict: Running, truncated: Path) -> None:
    answer = strict.client().audio.transcriptions.with_raw_response.create(
        file=("schön.wav", truncated.read_bytes()), model="nano", response_format="text"
    )
    assert answer.text == "one two three four\n"
    assert answer.headers["x-warnings"].startswith(r"sch\xf6n.wav is truncated or corrupt")


def test_remarks_on_a_recording_are_passed_on(strict: Running, speech: Waveform, tmp_path: Path) -> None:
    """Two channels that cancel each other out in their mean."""
    soundfile.write(tmp_path / "opposed.wav", np.stack([speech, -speech], axis=1), SAMPLE_RATE)
    notes: list[str] = []
    list(read_blocks(tmp_path / "opposed.wav", on_note=notes.append))
    reply = strict.client().audio.transcriptions.create(file=tmp_path / "opposed.wav", model="nano").to_dict()
    assert notes
    assert reply["warnings"] == [note.replace(f"{tmp_path}/", "") for note in notes]


def test_a_streamed_reply_ends_in_an_error_event(strict: Running, tmp_path: Path) -> None:
    """Of a file of which nothing can be read; a reply that has begun cannot become a 400."""
    path = hostile(tmp_path, "a playlist")
    with pytest.raises(APIError, match=r"a playlist\.wav is not audio") as failed:
        list(strict.client().audio.transcriptions.create(file=path, model="nano", stream=True))
    assert failed.value.code == "unreadable_audio"


def test_a_file_that_takes_too_much_memory_fails_alone(recording: Path) -> None:
    def samples(memory: int) -> int:
        decoder = FileDecoder(memory, max_duration=60)
        try:
            with recording.open("rb") as file:
                return sum(len(block) for block in decoder.blocks(file, "mine.wav", threading.Event()))
        finally:
            decoder.close()

    # With so little, Python itself may fail before it can say of what.
    with pytest.raises(AudioError, match=r"^mine\.wav (takes too much memory|could not be decoded)"):
        samples(memory=1000)
    assert samples(memory=200_000_000) == soundfile.info(recording).frames


def test_a_decoder_that_hangs_is_ended(tmp_path: Path, recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", python_path())
    monkeypatch.setattr(file_decoding, "BLOCK_SECONDS", 1)
    (tmp_path / "hangs.wav").write_bytes(HANGS)
    decoder = FileDecoder(1_000_000_000, max_duration=60)
    with (tmp_path / "hangs.wav").open("rb") as hangs, recording.open("rb") as file:
        with pytest.raises(AudioError, match=r"^mine\.wav takes too much memory or time"):
            list(decoder.blocks(hangs, "mine.wav", threading.Event()))
        monkeypatch.undo()
        assert any(len(block) for block in decoder.blocks(file, "mine.wav", threading.Event()))
    decoder.close()


def test_the_decoding_process_is_replaced_when_it_dies(strict: Running, recording: Path) -> None:
    strict.service.decoder.files.process.kill()
    strict.service.decoder.files.process.wait()
    assert strict.client().audio.transcriptions.create(file=recording, model="nano").text


def test_nothing_is_left_on_the_disk(strict: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = tmp_path.parent / "large.wav"
    soundfile.write(path, np.zeros(9 * SAMPLE_RATE), SAMPLE_RATE, subtype="DOUBLE")
    assert path.stat().st_size > MultiPartParser.spool_max_size  # more than is held in memory
    strict.client().audio.transcriptions.create(file=path, model="nano")
    with closing(half_a_request(strict)):
        until(lambda: strict.service.admission.is_full)
    until(lambda: idle(strict))
    assert list(tmp_path.iterdir()) == []


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
                        await asyncio.to_thread(until, lambda: len(one.service.worker.callers) == 2)
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
    monkeypatch.setattr(realtime, "MOST_UNHEARD", 1 << 20)
    monkeypatch.setattr(realtime, "MOST_UNWRITTEN_SECONDS", 1)
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
