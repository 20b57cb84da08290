"""What training made arrives at the hub whole, and stays whole where it does not arrive."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from asr_doge.errors import TrainingError
from asr_doge.models import load_model
from asr_doge.training.hub_upload import push_to_hub
from asr_doge.training.record import read_record
from tests.training.conftest import Train

TOKEN = "hf_of_a_test"


@dataclass
class Hub:
    """What a hub holds, as far as creating a repository and committing to it go; all files are small to it."""

    repositories: dict[str, bool] = field(default_factory=dict)
    """Whether each is private."""
    files: dict[str, bytes] = field(default_factory=dict)


@contextmanager
def serve(hub: Hub) -> Iterator[str]:
    """Yields the hub's address; it knows one token, whose owner is `me`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self._body()
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._answer({"error": "Invalid username or password."}, 401)
            elif self.path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked.get('organization') or 'me'}/{asked['name']}"
                hub.repositories[name] = asked.get("visibility") == "private" or bool(asked.get("private"))
                self._answer({"url": f"{self._address()}/{name}", "name": name, "id": "1"})
            elif self.path == "/api/validate-yaml":
                assert json.loads(body)["content"].startswith("---\nlibrary_name: asr-doge\n")
                self._answer({"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                paths = [file["path"] for file in json.loads(body)["files"]]
                files = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
                self._answer({"files": files})
            elif "/commit/" in self.path:
                for line in body.splitlines():
                    entry = json.loads(line)
                    value = entry["value"]
                    if entry["key"] == "file":
                        hub.files[value["path"]] = base64.b64decode(value["content"])
                self._answer({"commitUrl": f"{self._address()}/me/ears/commit/1", "commitOid": "1"})
            else:
                self._answer({}, 404)

        def _body(self) -> bytes:
            if "Content-Length" in self.headers:
                return self.rfile.read(int(self.headers["Content-Length"]))
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content

        def _address(self) -> str:
            return f"http://{self.headers['Host']}"

        def _answer(self, content: dict[str, Any], status: int = 200) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub on loopback, and nobody logged in to it."""
    made = Hub()
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with serve(made) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        yield made


def test_the_best_checkpoint_arrives_with_its_card(
    run: Train, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    result = run(tmp_path / "ears", epochs=1, push_to_hub=True, hub_private_repo=True)
    assert hub.repositories == {"me/ears": True}
    assert hub.files == {path.name: path.read_bytes() for path in result.best_dir.iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= hub.files.keys()
    assert f"pushed: {constants.ENDPOINT}/me/ears" in capsys.readouterr().out


def test_what_does_not_arrive_is_one_line_and_nothing_is_lost(run: Train, hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"me/ears: .*401.*best is whole: after 'hf auth login'") as caught:
        run(tmp_path / "run", epochs=1, push_to_hub=True, hub_model_id="me/ears")
    assert "\n" not in str(caught.value)
    assert hub.files == {}
    for name in ("best", "final"):
        load_model(tmp_path / "run" / name, device="cpu")
    assert "result" in (read_record(tmp_path / "run") or {})


def test_a_hub_that_is_not_there_and_a_name_that_cannot_be(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TrainingError, match=r"--push_to_hub not a name: .*hf upload 'not a name' "):
        push_to_hub(tmp_path, "not a name")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    with pytest.raises(TrainingError, match=r"--push_to_hub me/ears: .*hf upload me/ears ") as caught:
        push_to_hub(tmp_path, "me/ears")
    assert "\n" not in str(caught.value)
