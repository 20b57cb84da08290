"""A model hub on this machine, which speaks the real one's protocol as far as downloads need it."""

import json
import threading
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants
from transformers.utils.hub import hf_api

COMMIT = "c" * 40


@dataclass
class Hub:
    """Repositories by id, and what was asked of them."""

    repositories: dict[str, Path]
    downloaded: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(with_body=False)

            def do_GET(self) -> None:
                self.answer(with_body=True)

            def answer(self, with_body: bool) -> None:
                hub.requests.append(f"{self.command} {self.path}")
                owner, name, *rest = self.path.removeprefix("/api/models").strip("/").split("/")
                folder = hub.repositories.get(f"{owner}/{name}")
                if folder and rest and rest[0] in ("revision", "tree"):
                    self.list_files(folder, whole=rest[0] == "revision")
                    return
                path = folder / rest[-1] if folder and rest[:1] == ["resolve"] else None
                body = path.read_bytes() if path and path.is_file() else b""
                self.send_response(200 if body else 404)
                if folder and not body:
                    self.send_header("X-Error-Code", "EntryNotFound")
                elif not body:
                    self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", f'"{sha256(body).hexdigest()}"')
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if with_body and body and path:
                    hub.downloaded.append(f"{owner}/{name}/{path.name}")
                    self.wfile.write(body)

            def list_files(self, folder: Path, whole: bool) -> None:
                paths = sorted(folder.iterdir())
                files = [{"type": "file", "path": path.name, "oid": "0", "size": path.stat().st_size} for path in paths]
                repository = {
                    "id": folder.name,
                    "sha": COMMIT,
                    "siblings": [{"rfilename": path.name} for path in paths],
                }
                body = json.dumps(repository if whole else files).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def unplug(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def connect(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make it the hub of this process, which keeps what it fetches in `cache`."""
        # The environment variables of the same names are read but once, when huggingface_hub is imported.
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(hf_api(), "endpoint", self.url)
