"""Recordings of a web server, a real one on loopback, that denies, loses and forgets some of them."""

import json
import os
import socket
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from asr_doge.data import stores
from asr_doge.errors import AudioError, DataError
from asr_doge.scaling import engines, item_reading
from asr_doge.scaling.item_reading import open_item
from asr_doge.scaling.items import DeniedError, FetchError, Item, list_items
from asr_doge.scaling.jobs import run_transcribe_job
from tests.scaling.conftest import job, lines, samples, write_recordings
from tests.scaling.counting import CountingWorker

pytest.importorskip("aiohttp")
STATUS = {"unauthorized": 401, "denied": 403, "lost": 404, "gone": 410, "broken": 500}


class Server(ThreadingHTTPServer):
    """Serves a folder, but for recordings whose names say what happens to them."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.asked: Counter[str] = Counter()
        self.released = threading.Event()


class Handler(SimpleHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        kind = Path(self.path).stem[3:]
        self.server.asked[kind] += self.command == "GET"
        if kind in STATUS:
            self.send_error(STATUS[kind])
        elif kind == "busy" and self.server.asked[kind] <= 2:
            self.send_error(503)
        elif kind == "stalls":
            self.server.released.wait(20)
        else:
            getattr(super(), f"do_{self.command}")()

    do_HEAD = do_GET  # noqa: N815 - its base's name

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Six recordings, and a text."""
    folder = write_recordings(tmp_path / "in", 6, busy=1, lost=2, denied=4)
    (folder / "notes.txt").write_text("no recording")
    server = Server(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_files_folders_and_patterns_are_listed(server: Server, tmp_path: Path) -> None:
    paths = sorted((tmp_path / "in").glob("*.wav"))
    (item,) = list_items([f"{server.url}/000.wav"])
    assert (item.name, item.stamp.partition("-")[0]) == (f"{server.url}/000.wav", str(paths[0].stat().st_size))
    with open_item(item) as file:
        assert file.read() == paths[0].read_bytes()
    good = [f"{server.url}/{path.name}" for path in paths]
    assert [item.name for item in list_items([f"{server.url}/"])] == good
    assert [item.name for item in list_items([f"{server.url}/*.wav"])] == good


def test_the_query_of_a_signed_url_is_neither_pattern_nor_ending(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    query = "?token=a*b/c.d"
    (item,) = list_items([f"{server.url}/000.wav{query}"])
    assert item.url == f"{server.url}/000.wav{query}"
    with open_item(item) as file:
        assert file.read() == (folder / "000.wav").read_bytes()
    (folder / "m.jsonl").write_text('{"audio_path": "000.wav"}\n')
    assert [item.url for item in list_items([f"{server.url}/m.jsonl{query}"])] == [f"{server.url}/000.wav"]
    with tarfile.open(folder / "t.tar", "w") as archive:
        archive.add(folder / "003.wav", "003.wav")
    (member,) = list_items([f"{server.url}/t.tar{query}"])
    assert member.member == "003.wav"
    with open_item(member) as file:
        assert file.read() == (folder / "003.wav").read_bytes()


def test_a_row_of_a_signed_url_is_read(server: Server, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"bytes": b"sound", "path": None}, {"bytes": None, "path": "000.wav"}]
    parquet.write_table(arrow.table({"audio": rows}), tmp_path / "in" / "d.parquet")
    held, named = list_items([f"{server.url}/d.parquet?token=a/b"])
    for item, content in ((held, b"sound"), (named, (tmp_path / "in" / "000.wav").read_bytes())):
        with open_item(item) as file:
            assert file.read() == content


def test_large_files_of_a_server_that_gives_out_whole_files_only(server: Server, tmp_path: Path) -> None:
    """Beyond the 5 MiB that fsspec reads at once of smaller ones."""
    folder = tmp_path / "in"
    content = os.urandom(6_000_011)
    (folder / "large.wav").write_bytes(content)
    (item,) = list_items([f"{server.url}/large.wav"])
    with open_item(item) as file:
        assert file.read() == content
    (folder / "m.json").write_text('{"audio_path": "000.wav"}\n' + " " * 6_000_000 + "\n")
    assert [item.url for item in list_items([f"{server.url}/m.json"])] == [f"{server.url}/000.wav"]
    with tarfile.open(folder / "t.tar", "w") as archive:
        archive.add(folder / "large.wav", "large.wav")
    for url in (f"{server.url}/t.tar", f"{server.url}/"):
        with pytest.raises(DataError, match=rf"^{server.url}/t\.tar cannot be read in parts .*: download it$"):
            list_items([url])


def test_a_change_on_the_web_shows(server: Server, tmp_path: Path) -> None:
    """By the server's time of modification; the size is the same."""
    path = tmp_path / "in" / "000.wav"
    os.utime(path, (1_000_000_000, 1_000_000_000))
    (before,) = list_items([f"{server.url}/000.wav"])
    os.utime(path, (1_000_000_007, 1_000_000_007))
    (after,) = list_items([f"{server.url}/000.wav"])
    assert before.stamp == f"{path.stat().st_size}-Sun, 09 Sep 2001 01:46:40 GMT"
    assert after.stamp == f"{path.stat().st_size}-Sun, 09 Sep 2001 01:46:47 GMT"


@pytest.mark.parametrize(
    ("kind", "error", "line"),
    [
        ("unauthorized", DeniedError, "the server answers 401 Unauthorized: check your credentials."),
        ("denied", DeniedError, "the server answers 403 Forbidden: check your credentials."),
        ("broken", FetchError, "the server answers 500 Internal Server Error."),
        ("lost", AudioError, "does not exist: check the path."),
        ("gone", AudioError, "does not exist: check the path."),
    ],
)
def test_an_answer_that_is_no_recording_is_one_line(
    server: Server, kind: str, error: type[Exception], line: str
) -> None:
    url = f"{server.url}/000{kind}.wav"
    with pytest.raises(AudioError) as caught:
        open_item(Item(url))
    assert type(caught.value) is error
    assert str(caught.value).startswith(url)
    assert str(caught.value).endswith(line)
    with pytest.raises(DataError, match=f"^{url} .*: check the URL"):
        list_items([url])


def test_a_server_that_does_not_answer_is_an_outage(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "_WEB_SECONDS", 0.2)
    with pytest.raises(FetchError, match=rf"^{server.url}/000stalls\.wav cannot be opened: no answer in time\.$"):
        open_item(Item(f"{server.url}/000stalls.wav"))
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/a.wav"
        with pytest.raises(FetchError, match=f"^{url} cannot be opened: .*[Cc]onnect"):
            open_item(Item(url))


def test_output_that_is_not_let_in_is_one_line_before_any_work(server: Server, tmp_path: Path) -> None:
    config = job(tmp_path / "in", Path("web"))
    config.output_dir = f"{server.url}/000denied/"
    with pytest.raises(DataError, match=r"^--output_dir: .*/000denied/.* 403 Forbidden.*: check the URL and your cred"):
        run_transcribe_job(config, CountingWorker)


@pytest.mark.parametrize("place", ["files", "output_dir"])
def test_an_object_store_without_credentials_is_one_line(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """By s3fs itself, which then asks no store."""
    pytest.importorskip("s3fs")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    config = job(tmp_path / "in", tmp_path / "out")
    setattr(config, place, ["s3://bucket/in"] if place == "files" else "s3://bucket/out")
    with pytest.raises(DataError, match=r"s3://bucket/.*: check the URL and your credentials$"):
        run_transcribe_job(config, CountingWorker)


def test_a_job_names_what_is_lost_or_denied_and_waits_for_what_is_busy(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (engines, item_reading):
        monkeypatch.setattr(module, "_PAUSE_SECONDS", 0.0)
    names = [path.name for path in sorted((tmp_path / "in").glob("*.wav"))]
    manifest = tmp_path / "m.json"
    manifest.write_text("\n".join(json.dumps({"audio_path": f"{server.url}/{name}"}) for name in names))
    summary = run_transcribe_job(job(manifest, tmp_path / "out", shard_size=6), CountingWorker)
    assert summary.left == []
    assert dict(summary.failed) == {
        f"{server.url}/002lost.wav": f"{server.url}/002lost.wav does not exist: check the path.",
        f"{server.url}/004denied.wav": f"{server.url}/004denied.wav cannot be opened: the server answers 403 Forbidden:"
        " check your credentials.",
    }
    assert [line.get("text") for line in lines(tmp_path / "out")] == [
        None if number in (2, 4) else f"{samples(number)} samples" for number in range(6)
    ]
