"""Who may use a server: keys, other sites, and what is open to everybody."""

import asyncio
import json
import re
import threading
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from openai import AuthenticationError
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.serving.clients import hold, reply_to
from tests.serving.conftest import KEY, Running
from tests.waiting import until


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
    until(lambda: bool(served.service.worker.transcribers))
    for path in ("/docs", "/openapi.json", "/healthz", "/readyz", "/metrics", "/"):
        assert reply_to(served, path)[0] == 200, path
    assert served.service.worker.transcribers
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
