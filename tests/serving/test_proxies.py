"""Behind nginx and Caddy, with the sites in deploy/: replies as they come, live sessions, and limits."""

import asyncio
import json
import os
import select
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from openai import OpenAI
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin

from asr_doge.decoding.configuration import DecodingConfig
from asr_doge.inference.transcription import load
from asr_doge.serving import transcriptions
from tests.serving.conftest import KEY, Held, Running, running
from tests.serving.test_realtime import append, event, pcm, send, set_input, until_completed
from tests.waiting import until

DEPLOY = Path(__file__).parents[2] / "deploy"
NGINX = """
pid {folder}/pid; error_log {folder}/error.log; daemon off; {user}
events {{}}
http {{
    access_log off; client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
    uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
    include {folder}/site.conf;
}}
"""


@dataclass(frozen=True)
class Proxied:
    """A server and the proxy before it."""

    served: Running
    host: str

    def client(self) -> OpenAI:
        return OpenAI(api_key=KEY, base_url=f"http://{self.host}/v1", max_retries=0)


def nginx(folder: Path, port: int, server_port: int) -> list[str]:
    """The command that serves deploy/nginx.conf."""
    site = (DEPLOY / "nginx.conf").read_text()
    for old, new in (("listen 80;", f"listen 127.0.0.1:{port};"), ("127.0.0.1:8000", f"127.0.0.1:{server_port}")):
        assert old in site
        site = site.replace(old, new)
    (folder / "site.conf").write_text(site)
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, user=user))
    return ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]


def caddy(folder: Path, port: int, server_port: int) -> list[str]:
    """The command that serves deploy/Caddyfile, without a certificate."""
    site = (DEPLOY / "Caddyfile").read_text()
    for old, new in (
        ("speech.example.org", f"http://127.0.0.1:{port}"),
        ("127.0.0.1:8000", f"127.0.0.1:{server_port}"),
    ):
        assert old in site
        site = site.replace(old, new)
    (folder / "Caddyfile").write_text(f"{{\n\tadmin off\n}}\n{site}")
    return ["caddy", "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


@pytest.fixture(scope="module")
def keyed() -> Iterator[Running]:
    """A server with a key, as one behind a proxy has."""
    with running(api_key=KEY) as one:
        yield one


@pytest.fixture(scope="module", params=[nginx, caddy], ids=["nginx", "caddy"])
def proxied(
    request: pytest.FixtureRequest, keyed: Running, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxied]:
    name = request.param.__name__
    if shutil.which(name) is None:
        pytest.skip(f"needs {name}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp(name)
    environment = os.environ | {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            request.param(folder, port, keyed.server.port), env=environment, stdout=log, stderr=log
        )
    try:
        until(lambda: _answers(port) or process.poll() is not None)
        assert process.poll() is None, (folder / "log").read_text()
        yield Proxied(keyed, f"127.0.0.1:{port}")
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:  # Caddy waits for its clients
            process.kill()
            process.wait()


def _answers(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def test_a_file_has_its_text(proxied: Proxied, recording: Path, file_text: str) -> None:
    assert proxied.client().audio.transcriptions.create(file=recording, model="whisper-1").text == file_text


def test_events_come_as_they_are_sent(
    proxied: Proxied, recording: Path, file_text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comment that keeps proxies waiting is here before the model has done anything."""
    monkeypatch.setattr(transcriptions, "KEEP_ALIVE_SECONDS", 0.1)
    held = Held(proxied.served.service.worker.loaded(), monkeypatch)
    create = proxied.client().audio.transcriptions.with_streaming_response.create
    with create(file=recording, model="nano", stream=True) as answer:
        lines = (line for line in answer.iter_lines() if line)
        assert next(lines).startswith(":")
        held.go.set()
        events = [json.loads(line.removeprefix("data: ")) for line in lines if not line.startswith(":")]
    assert events[-1]["type"] == "transcript.text.done"
    assert len(events[-1]["text"].split()) >= 6


def test_a_live_session(proxied: Proxied, speech: NDArray[np.float32]) -> None:
    """From a page of the proxy's own site, at a port of its own."""
    address = f"ws://{proxied.host}/v1/realtime?intent=transcription"

    async def heard() -> str:
        keyed = {"Authorization": f"Bearer {KEY}"}
        async with connect(address, additional_headers=keyed, origin=Origin(f"http://{proxied.host}")) as socket:
            assert (await event(socket))["type"] == "session.created"
            await set_input(socket, turn_detection=None)
            await append(socket, pcm(speech, 24_000))
            await send(socket, "input_audio_buffer.commit")
            return str((await until_completed(socket))[-1]["transcript"])

    text = load("nano", device="cpu", decoding=DecodingConfig(cut_at_pauses=True)).transcribe(speech).text
    assert asyncio.run(heard()) == text


@pytest.mark.parametrize(("key", "origin", "status"), [("another", None, 401), (KEY, "https://evil.example", 403)])
def test_who_may_not_is_refused_before_a_session(proxied: Proxied, key: str, origin: str | None, status: int) -> None:
    async def come() -> None:
        address, keyed = f"ws://{proxied.host}/v1/realtime", {"Authorization": f"Bearer {key}"}
        async with connect(address, additional_headers=keyed, origin=Origin(origin) if origin else None):
            pass

    with pytest.raises(InvalidStatus) as refused:
        asyncio.run(come())
    assert refused.value.response.status_code == status


def test_too_large_a_file_is_refused_before_it_is_read(proxied: Proxied) -> None:
    """nginx passes the answer on at once, Caddy when the client has begun to send."""
    connection = HTTPConnection(proxied.host, timeout=60)
    connection.putrequest("POST", "/v1/audio/transcriptions")
    headers = {
        "Authorization": f"Bearer {KEY}",
        "Content-Type": "multipart/form-data; boundary=X",
        "Content-Length": "205000000",  # less than the proxies' 210 MB, more than --max_upload_mb
    }
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    sent = 0
    while not select.select([connection.sock], [], [], 0.05)[0] and sent < 20_000_000:
        connection.send(bytes(65_536))
        sent += 65_536
    answer = connection.getresponse()
    assert answer.status == 413
    assert json.loads(answer.read())["error"]["code"] == "file_too_large"
    connection.close()
