"""A real server on a port of its own, with the bundled model, for real clients."""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from openai import OpenAI

from asr_doge.audio import SAMPLE_RATE, Voice, file_decoding, synthesize
from asr_doge.decoding.recognition import Recognition
from asr_doge.inference.chunking import Chunk
from asr_doge.inference.transcription import Transcriber, load
from asr_doge.serving.chunk_decoding import MODULE
from asr_doge.serving.configuration import ServeConfig
from asr_doge.serving.server import Server, create_server
from tests.nursery import nursery, start_at
from tests.waiting import TIMEOUT_SECONDS, until

KEY = "sk-a-key-of-the-tests"


class Running:
    """A server that runs in a thread."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.service = server.service
        self.thread = threading.Thread(target=server.run, daemon=True)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    def client(self, **options: object) -> OpenAI:
        values = {"api_key": KEY, "base_url": f"{self.address}/v1", "max_retries": 0} | options
        return OpenAI(**values)  # type: ignore[arg-type]  # as each test names them


@contextmanager
def running(**settings: object) -> Iterator[Running]:
    """A server with the given settings, stopped at the end."""
    config = ServeConfig(**{"model": "nano", "port": 0, "device": "cpu", "timestamps": "auto"} | settings)  # type: ignore[arg-type]
    config.check()
    one = Running(create_server(config))
    one.thread.start()
    until(lambda: one.server.started)
    try:
        yield one
    finally:
        one.server.should_exit = True
        one.thread.join(TIMEOUT_SECONDS)
        assert not one.thread.is_alive()


class Held:
    """A model that recognizes nothing, or not its first batches, until it is let go."""

    def __init__(self, model: Transcriber, monkeypatch: pytest.MonkeyPatch, first: int | None = None) -> None:
        self.begun: list[float] = []  # seconds of the first chunk of each batch
        self.sizes: list[int] = []  # its chunks
        self.waiting = 0  # batches
        self.go = threading.Event()
        recognize = model.recognize_chunks

        def wait(chunks: Sequence[Chunk], *others: Any) -> list[Recognition]:
            self.sizes.append(len(chunks))
            self.begun.append(len(chunks[0].samples) / SAMPLE_RATE)
            if first is None or len(self.begun) <= first:
                self.waiting += 1
                is_let_go = self.go.wait(TIMEOUT_SECONDS)
                self.waiting -= 1
                assert is_let_go
            return recognize(chunks, *others)

        monkeypatch.setattr(model, "recognize_chunks", wait)


@pytest.fixture(autouse=True, scope="package")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Servers and tests start many."""
    path, folder = os.environ.get("PYTHONPATH", ""), tmp_path_factory.mktemp("decoders")
    with pytest.MonkeyPatch.context() as patch, nursery(MODULE, folder, path) as address:
        patch.setattr(file_decoding, "_started", start_at(address, MODULE))
        yield


@pytest.fixture(scope="package")
def served() -> Iterator[Running]:
    """A server as most tests need it."""
    with running() as one:
        yield one


@pytest.fixture(scope="package")
def strict() -> Iterator[Running]:
    """A server with a key that takes one of each, and little of it."""
    with running(
        api_key=KEY,
        max_requests=1,
        max_sessions=1,
        max_upload_mb=3,
        max_duration=60,
        allowed_origins=["https://example.org"],
    ) as one:
        yield one


@pytest.fixture(scope="package")
def speech() -> NDArray[np.float32]:
    """Two sentences of digits with a pause between them, at 16 kHz."""
    said = [synthesize(text, Voice(words_per_minute=130)) for text in ("one two three four", "nine eight seven")]
    # Faint noise, since a recording is cut where there is no sound at all.
    pause = np.random.default_rng(0).integers(-6, 7, round(1.5 * SAMPLE_RATE)).astype(np.float32) / np.float32(32768)
    return np.concatenate([said[0], pause, said[1], pause])


@pytest.fixture(scope="package")
def recording(speech: NDArray[np.float32], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, as a file."""
    path = tmp_path_factory.mktemp("serving") / "digits.wav"
    soundfile.write(path, speech, SAMPLE_RATE)
    return path


@pytest.fixture(scope="package")
def file_text(recording: Path) -> str:
    """Its text, read whole without a server."""
    text = load("nano", device="cpu").transcribe(recording).text
    assert len(text.split()) >= 6
    return text
