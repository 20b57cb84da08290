"""A job whose recordings and output are on S3: s3fs as users have it, and moto's server in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from asr_doge.errors import DataError
from asr_doge.inference.output import Result
from asr_doge.scaling import engines, item_reading
from asr_doge.scaling.configuration import TranscribeJobConfig
from asr_doge.scaling.items import Item, list_items
from asr_doge.scaling.jobs import run_transcribe_job
from tests.scaling.conftest import python_path, samples, write_recordings
from tests.scaling.counting import CountingWorker

s3fs = pytest.importorskip("s3fs")
pytest.importorskip("moto")
SERVER = r"""
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0)
server.start()
print("\nat", *server.get_host_and_port(), flush=True)
input()
"""
EXPECTED = [f"{samples(number)} samples" for number in range(12)]


class Bucket:
    """One on the server, seen by s3fs directly."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._post("reset")

    @property
    def files(self) -> Any:
        """The store, as it is now."""
        s3fs.S3FileSystem.clear_instance_cache()
        return s3fs.S3FileSystem()

    def make(self, folder: Path) -> None:
        """A bucket `speech` with a folder's files at `in`."""
        files = self.files
        files.mkdir("speech")
        for path in folder.iterdir():
            files.pipe_file(f"speech/in/{path.name}", path.read_bytes())

    def deny_after(self, requests: int) -> None:
        """From then on, only keys of users that moto knows count: of none."""
        self._post("reset-auth", str(requests).encode())

    def _post(self, action: str, body: bytes = b"") -> None:
        plain = {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(f"{self.address}/moto-api/{action}", body, plain)).read()

    def lines(self) -> list[dict[str, object]]:
        """Of all complete shards, in order."""
        files = self.files
        markers = sorted(files.glob("speech/out/*.done.json"))
        shards = [files.cat_file(name.replace(".done.json", ".jsonl")) for name in markers]
        return [json.loads(line) for shard in shards for line in shard.splitlines()]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Its address."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    host, port = next(line.split()[1:] for line in process.stdout if line.startswith("at "))
    yield f"http://{host}:{port}"
    process.communicate("\n")


@pytest.fixture
def bucket(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """Twelve recordings at `s3://speech/in`; the environment has the store's address and a key, as a user's has."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for module in (engines, item_reading):
        monkeypatch.setattr(module, "_PAUSE_SECONDS", 0.0)
    bucket = Bucket(server)
    bucket.make(write_recordings(tmp_path / "in", 12))
    return bucket


def on_s3(**settings: object) -> TranscribeJobConfig:
    """From the bucket to the bucket, in shards of four."""
    defaults: dict[str, object] = {"engine": "local", "shard_size": 4, "max_attempts": 2, "decoders": 1}
    files = ["s3://speech/in"]
    return TranscribeJobConfig(files=files, output_dir="s3://speech/out", **defaults | settings)  # type: ignore[arg-type]  # checked by the job


def test_from_a_bucket_to_a_bucket_and_again(bucket: Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    summary = run_transcribe_job(on_s3(), CountingWorker)
    assert (summary.finished, summary.transcribed, summary.failed, summary.left) == (3, 12, [], [])
    assert [line["text"] for line in bucket.lines()] == EXPECTED
    assert [line["path"] for line in bucket.lines()] == [f"s3://speech/in/{number:03}.wav" for number in range(12)]
    assert json.loads(bucket.files.cat_file("speech/out/summary.json"))["transcribed"] == 12
    assert not bucket.files.glob("speech/out/*.attempts.json")

    shard = "transcripts-00002-of-00003.jsonl"  # a marker without its shard
    bucket.files.rm_file(f"speech/out/{shard}")
    run_transcribe_job(on_s3(), CountingWorker)
    assert f"{shard} is marked complete, and is not: it is made anew" in capsys.readouterr().err
    assert [line["text"] for line in bucket.lines()] == EXPECTED

    content = bucket.files.cat_file("speech/in/003.wav")  # of the same size: only its etag tells
    bucket.files.pipe_file("speech/in/003.wav", content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match="which differs in source"):
        run_transcribe_job(on_s3(), CountingWorker)


def test_a_killed_job_goes_on(bucket: Bucket) -> None:
    """Killed by the system as it begins its sixth recording; only that and what had no line yet is read again."""
    code = (
        "import os, signal\nfrom tests.scaling.counting import CountingWorker\n"
        "from tests.scaling.test_s3 import on_s3\n"
        "from asr_doge.scaling.jobs import run_transcribe_job\n"
        "class Dying(CountingWorker):\n"
        "    def results(self, items):\n"
        "        for item, result in zip(items, super().results(items)):\n"
        "            if item.url.endswith('005.wav'): os.kill(os.getpid(), signal.SIGKILL)\n"
        "            yield result\n"
        "run_transcribe_job(on_s3(), Dying)"
    )
    environment = os.environ | {"PYTHONPATH": python_path()}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == -signal.SIGKILL
    asked: list[str] = []

    class Noting(CountingWorker):
        def results(self, items: Sequence[Item]) -> Iterator[Result]:
            asked.extend(item.url[-7:] for item in items)
            return super().results(items)

    run_transcribe_job(on_s3(), Noting)
    assert sorted(asked) == [f"{number:03}.wav" for number in range(5, 12)]
    assert [line["text"] for line in bucket.lines()] == EXPECTED


def test_a_key_that_expires_leaves_shards_and_another_finishes(bucket: Bucket) -> None:
    class Expiring(CountingWorker):
        def results(self, items: Sequence[Item]) -> Iterator[Result]:
            if any(item.url.endswith("/004.wav") for item in items):
                bucket.deny_after(0)
            return super().results(items)

    with pytest.raises(DataError, match=r"s3://speech/.*(Forbidden|credentials|Access)"):
        run_transcribe_job(on_s3(), Expiring)
    bucket.deny_after(1_000_000)
    assert run_transcribe_job(on_s3(), CountingWorker).transcribed == 12
    assert [line["text"] for line in bucket.lines()] == EXPECTED


def test_a_bucket_that_does_not_exist_is_one_line(bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^s3://nowhere/in "):
        list_items(["s3://nowhere/in"])
    config = on_s3()
    config.output_dir = "s3://nowhere/out"
    line = (
        r"^--output_dir: s3://nowhere/out/job\.json cannot be written: .* does not exist: check the URL and your cred"
    )
    with pytest.raises(DataError, match=line):
        run_transcribe_job(config, CountingWorker)
