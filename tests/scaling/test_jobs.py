"""A job on one machine: complete whatever stops it, each recording once, and poison named."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr_doge.audio import file_decoding
from asr_doge.data.stores import LocalStore
from asr_doge.errors import DataError
from asr_doge.inference.output import Result
from asr_doge.scaling import engines
from asr_doge.scaling.engines import TransientError
from asr_doge.scaling.items import Item
from asr_doge.scaling.jobs import CrashLimit, run_transcribe_job
from asr_doge.scaling.shard_encoding import _schema
from asr_doge.scaling.shard_worker import Shard
from asr_doge.scaling.shards import Attempts, Job, JobFolder, ShardReport
from tests.scaling.conftest import check_complete, job, lines, python_path, read_again, samples, write_recordings
from tests.scaling.counting import CountingWorker
from tests.scaling.fragile.sitecustomize import DECODER_SECONDS
from tests.waiting import until

CRASHED = "crashes its decoder (SIGSEGV)"
DEAD = "given up after attempt 2: its worker died"


def in_process(folder: Path, output: Path, **settings: object) -> "subprocess.Popen[str]":
    """A job in a process of its own."""
    code = (  # where pytest runs in the background, its children would ignore Ctrl-C
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from pathlib import Path; from tests.scaling.conftest import job, share_decoders; share_decoders();"
        "from tests.scaling.counting import CountingWorker;"
        "from asr_doge.scaling.jobs import run_transcribe_job as run;"
        f"run(job(Path({str(folder)!r}), Path({str(output)!r}), **{settings!r}), CountingWorker)"
    )
    environment = os.environ | {"PYTHONPATH": python_path()}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, text=True, stderr=subprocess.PIPE)


@given(count=st.integers(1, 100), size=st.integers(1, 40))
def test_shards_hold_every_item_once(count: int, size: int) -> None:
    items = [Item(str(number)) for number in range(count)]
    whole = Job("transcribe", "m", {}, "s", count, size, "1")
    shards = [whole.shard(items, number) for number in range(1, whole.num_shards + 1)]
    assert [item for shard in shards for item in shard] == items
    assert {len(shard) for shard in shards[:-1]} <= {size}
    assert 1 <= len(shards[-1]) <= size


def test_bad_recordings_cost_themselves_alone(tmp_path: Path) -> None:
    folder = write_recordings(tmp_path / "in", 11, crashes=1, raises=6, bloats=9)
    summary = run_transcribe_job(job(folder, tmp_path / "out", max_attempts=1), CountingWorker)
    assert (summary.shards, summary.finished, summary.transcribed) == (3, 3, 8)
    reasons = {"crashes": CRASHED, "raises": "RuntimeError: a defect in a stage", "bloats": "emory"}
    check_complete(folder, tmp_path / "out", **reasons)
    assert not list((tmp_path / "out").glob("*.attempts.json"))


def test_a_decoder_that_hangs_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_decoding, "BLOCK_SECONDS", DECODER_SECONDS)
    folder = write_recordings(tmp_path / "in", 3, hangs=1)
    run_transcribe_job(job(folder, tmp_path / "out", max_attempts=1), CountingWorker)
    check_complete(folder, tmp_path / "out", hangs=f"none of it came in {DECODER_SECONDS} s")


def test_a_recording_that_kills_its_worker_is_given_up(tmp_path: Path) -> None:
    folder = write_recordings(tmp_path / "in", 6, kills=2)
    codes = []
    while not (tmp_path / "out" / "summary.json").exists():
        codes.append(in_process(folder, tmp_path / "out").wait())
        assert len(codes) < 5
    assert codes == [-signal.SIGKILL] * 3 + [0]  # once among its neighbours, twice alone
    check_complete(folder, tmp_path / "out", kills=DEAD)


@pytest.mark.parametrize(("stop", "reads_at_once"), [(signal.SIGKILL, 1), (signal.SIGINT, 3)])
def test_only_the_rest_of_a_shard_is_done_again(tmp_path: Path, stop: signal.Signals, reads_at_once: int) -> None:
    """One recording at a time if the worker died, since the next one may be why, and together if it was stopped."""
    folder = write_recordings(tmp_path / "in", 12)
    (folder / "009.wav").rename(folder / "009waits.wav")
    first = in_process(folder, tmp_path / "out", shard_size=12)
    until(lambda: (folder / "009waits.pid").exists())
    first.send_signal(stop)
    first.wait()
    (folder / "go").touch()
    asked: list[int] = []

    class Noting(CountingWorker):
        def results(self, items: Sequence[Item]) -> Iterator[Result]:
            asked.append(len(items))
            return super().results(items)

    run_transcribe_job(job(folder, tmp_path / "out", shard_size=12), Noting)
    assert read_again(folder) == ["009waits.wav"]
    assert asked == [reads_at_once] * (3 // reads_at_once)
    check_complete(folder, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.attempts.json"))


def test_lines_are_stored_in_an_object_store_too(tmp_path: Path) -> None:
    folder = write_recordings(tmp_path / "in", 4, raises=2)
    config = job(folder, Path("memory:/kept"), max_attempts=1)
    config.output_dir = "memory://kept"
    run_transcribe_job(config, CountingWorker)
    assert read_again(folder) == ["002raises.wav"]
    written = fsspec.filesystem("memory").cat_file("/kept/transcripts-00001-of-00001.jsonl")
    assert [json.loads(line).get("text") for line in written.splitlines()] == [
        f"{samples(number)} samples" if number != 2 else None for number in range(4)
    ]


def test_only_unfinished_shards_are_done_again(tmp_path: Path) -> None:
    folder = write_recordings(tmp_path / "in", 9)
    out = tmp_path / "out"
    run_transcribe_job(job(folder, out), CountingWorker)
    kept, gone = sorted(out.glob("*.jsonl"))[0], sorted(out.glob("*.jsonl"))[1]
    before = kept.stat().st_mtime_ns
    gone.with_suffix(".done.json").unlink()
    gone.write_text('{"torn')
    run_transcribe_job(job(folder, out), CountingWorker)
    check_complete(folder, out)
    assert kept.stat().st_mtime_ns == before


def test_a_marker_without_its_shard_is_said_and_mended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_recordings(tmp_path / "in", 5)
    out = tmp_path / "out"
    run_transcribe_job(job(folder, out), CountingWorker)
    (out / "transcripts-00002-of-00002.jsonl").unlink()
    run_transcribe_job(job(folder, out), CountingWorker)
    assert "transcripts-00002-of-00002.jsonl is marked complete, and is not: it is made anew" in capsys.readouterr().err
    check_complete(folder, out)


def test_a_marker_of_another_part_is_left_to_it(tmp_path: Path) -> None:
    """Which may be about to write the shard that it marks."""
    folder = write_recordings(tmp_path / "in", 14)
    out = tmp_path / "out"
    run_transcribe_job(job(folder, out), CountingWorker)
    shards = sorted(out.glob("*.jsonl"))
    shards[1].unlink()
    marker = shards[1].with_suffix(".done.json")
    run_transcribe_job(job(folder, out, engine=None, shard="1/3"), CountingWorker)
    assert marker.exists()
    run_transcribe_job(job(folder, out, engine=None, shard="2/3"), CountingWorker)
    check_complete(folder, out)


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        ({"hotword_weight": 2.0}, "--hotword_weight"),
        ({"shard_size": 3}, "shard_size"),
        ({"model": "other"}, "model"),
        ({"format": "parquet"}, "format"),
    ],
)
def test_another_job_is_refused(tmp_path: Path, settings: dict[str, object], difference: str) -> None:
    folder = write_recordings(tmp_path / "in", 2)
    run_transcribe_job(job(folder, tmp_path / "out"), CountingWorker)
    before = lines(tmp_path / "out")
    with pytest.raises(DataError, match=f"is of another job, which differs in {difference}: choose another"):
        run_transcribe_job(job(folder, tmp_path / "out", **settings), CountingWorker)
    assert lines(tmp_path / "out") == before


def test_changed_recordings_are_another_job_unless_it_may_be_replaced(tmp_path: Path) -> None:
    folder = write_recordings(tmp_path / "in", 6)
    run_transcribe_job(job(folder, tmp_path / "out"), CountingWorker)
    write_recordings(folder, 3)
    with pytest.raises(DataError, match="which differs in source"):
        run_transcribe_job(job(folder, tmp_path / "out"), CountingWorker)
    run_transcribe_job(job(folder, tmp_path / "out", overwrite=True), CountingWorker)
    check_complete(folder, tmp_path / "out")


def test_parts_make_the_whole(tmp_path: Path) -> None:
    folder = write_recordings(tmp_path / "in", 14, crashes=13)
    for part in ("2/3", "1/3", "3/3"):
        run_transcribe_job(job(folder, tmp_path / "out", engine=None, shard=part), CountingWorker)
    check_complete(folder, tmp_path / "out", crashes=CRASHED)


def test_two_drivers_on_one_output_double_nothing(tmp_path: Path) -> None:
    folder = write_recordings(tmp_path / "in", 14, crashes=5)
    both = [in_process(folder, tmp_path / "out") for _ in range(2)]
    assert [one.wait() for one in both] == [0, 0]
    check_complete(folder, tmp_path / "out", crashes=CRASHED)


def test_a_full_disk_stops_the_job_and_loses_nothing(tmp_path: Path, small_disk: Path, no_pauses: None) -> None:
    folder = write_recordings(tmp_path / "in", 20)
    out = small_disk / "out"
    fill = small_disk / "fill"
    fill.write_bytes(b"x" * (2 * 1024 * 1024 - 50_000))  # room for some shards of one recording
    with pytest.raises(DataError, match="check the folder and the free space"):
        run_transcribe_job(job(folder, out, shard_size=1), CountingWorker)
    assert 0 < len(lines(out)) < 20
    fill.unlink()
    run_transcribe_job(job(folder, out, shard_size=1), CountingWorker)
    check_complete(folder, out)


def test_the_time_of_a_shard_is_that_of_all_its_tries(tmp_path: Path) -> None:
    folder = write_recordings(tmp_path / "in", 4)
    config = job(folder, tmp_path / "out")

    class Stopped(CountingWorker):
        def results(self, items: Sequence[Item]) -> Iterator[Result]:
            yield from list(super().results(items))[:2]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_transcribe_job(config, Stopped)
    (noted,) = (tmp_path / "out").glob("*.attempts.json")
    kept = json.loads(noted.read_text())
    assert len(kept["lines"]) == 2
    assert kept["work_seconds"] > 0
    noted.write_text(json.dumps(kept | {"work_seconds": 1000.0}))
    run_transcribe_job(config, CountingWorker)
    marker = json.loads((tmp_path / "out" / "transcripts-00001-of-00001.done.json").read_text())
    assert marker["work_seconds"] > 1000


class FailingWorker:
    """Does numbers, but for some."""

    def __init__(self, bad: set[int]) -> None:
        self.bad = bad

    def start(self) -> None:
        """Nothing."""

    def run(self, task: int, is_last: bool = False) -> int:
        if task in self.bad:
            raise TransientError(f"{task} cannot be fetched")
        return task

    def close(self) -> None:
        """Nothing."""


def test_tasks_that_cannot_be_done_cost_the_others_nothing(no_pauses: None) -> None:
    done: list[int] = []
    left = engines.run_here(lambda: FailingWorker({2, 5}), range(10), done.append)
    assert sorted(done) == [0, 1, 3, 4, 6, 7, 8, 9]
    assert left == ["2 cannot be fetched", "5 cannot be fetched"]


def test_a_shard_that_ends_worker_after_worker_stops_the_job(tmp_path: Path) -> None:
    """While each attempt at a recording is noted before it is begun, any number may end one."""
    folder = JobFolder(str(tmp_path), Job("transcribe", "m", {}, "s", 4, 4, "1"))
    limit, shard = CrashLimit(folder), Shard(1, ())
    for tried in range(1, 9):
        folder.note_attempt(1, Attempts(tried=tried))
        assert limit.retry(shard, "killed") == [shard]
    for _ in range(2):
        assert limit.retry(shard, "killed") == [shard]
    with pytest.raises(DataError, match="shard 1 ended 4 workers in a row and came no further, at last with killed"):
        limit.retry(shard, "killed")


def test_as_many_recordings_as_there_are_may_fail(tmp_path: Path) -> None:
    """Failures are of recordings, however many; every tenth is good, which tells them from a fault of all."""
    folder = write_recordings(tmp_path / "in", 20)
    for number, path in enumerate(sorted(folder.iterdir())):
        if number % 10:
            path.rename(folder / f"{path.stem}raises.wav")
    summary = run_transcribe_job(job(folder, tmp_path / "out", shard_size=20, max_attempts=12), CountingWorker)
    assert (summary.transcribed, len(summary.failed)) == (2, 18)


def test_what_another_process_is_reading_is_not_given_up(tmp_path: Path) -> None:
    folder, out = write_recordings(tmp_path / "in", 3), tmp_path / "out"
    (folder / "001.wav").rename(folder / "001waits.wav")
    settings: dict[str, object] = {"max_attempts": 1}
    first = in_process(folder, out, **settings)
    until(lambda: (folder / "001waits.pid").exists())
    first.kill()  # so that the shard is taken one by one from now on
    first.wait()
    (folder / "001waits.pid").unlink()
    both = [in_process(folder, out, **settings)]
    until(lambda: (folder / "001waits.pid").exists())
    both.append(in_process(folder, out, **settings))
    until(lambda: (folder / "001waits.pid").read_text() == str(both[1].pid))
    (folder / "go").touch()
    assert [one.wait() for one in both] == [0, 0]
    assert "error" not in (out / "transcripts-00001-of-00001.jsonl").read_text()


def test_two_that_write_one_shard_leave_a_marker_of_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process replaces the shard between its file and its marker, once."""
    described = Job("transcribe", "m", {}, "s", 1, 4, "1")
    mine, other = JobFolder(str(tmp_path), described), JobFolder(str(tmp_path), described)
    others = [lambda: other.commit(ShardReport(1, transcribed=1), ["{}"])]
    honest = LocalStore.write

    def write(store: LocalStore, name: str, content: bytes) -> None:
        if name.endswith("done.json") and others:
            others.pop()()
        honest(store, name, content)

    monkeypatch.setattr(LocalStore, "write", write)
    mine.commit(ShardReport(1, failures=[("a", "b")]), ['{"error": "b"}'])
    marker = json.loads((tmp_path / "transcripts-00001-of-00001.done.json").read_text())
    held = (tmp_path / "transcripts-00001-of-00001.jsonl").read_bytes()
    assert marker["sha256"] == hashlib.sha256(held).hexdigest()


def test_parquet_holds_what_json_lines_hold(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = write_recordings(tmp_path / "in", 6, crashes=4)
    (folder / "002.wav").rename(folder / os.fsdecode(b"002\xff.wav"))  # no UTF-8
    for shard_format in ("jsonl", "parquet"):
        run_transcribe_job(job(folder, tmp_path / shard_format, format=shard_format), CountingWorker)
    files = sorted((tmp_path / "parquet").glob("*.parquet"))
    assert [path.name for path in files] == [f"transcripts-0000{number}-of-00002.parquet" for number in (1, 2)]
    rows = [row for path in files for row in parquet.read_table(path).to_pylist()]
    expected = lines(tmp_path / "jsonl")
    assert [{name: value for name, value in row.items() if value is not None} for row in rows] == [
        line | {"path": str(line["path"]).replace("\udcff", "\\udcff")} for line in expected
    ]


def test_parquet_has_a_column_for_every_field() -> None:
    arrow = pytest.importorskip("pyarrow")
    schema = json.loads((Path(__file__).parents[2] / "docs" / "transcription.schema.json").read_text())
    definitions = schema["$defs"]
    of_job = {"version", "model", "offset"}
    assert set(_schema(arrow).names) == of_job | {"error"} | set(definitions["transcription"]["properties"])
    segment = _schema(arrow).field("segments").type.value_type
    assert {segment.field(number).name for number in range(segment.num_fields)} == set(
        definitions["segment"]["properties"]
    )


def test_a_fault_of_all_recordings_is_not_blamed_on_each(tmp_path: Path) -> None:
    folder = write_recordings(tmp_path / "in", 13)
    for path in folder.iterdir():
        path.rename(folder / f"{path.stem}raises.wav")
    with pytest.raises(DataError, match="11 recordings in a row were given up"):
        run_transcribe_job(job(folder, tmp_path / "out", shard_size=20, max_attempts=1), CountingWorker)
    assert not (tmp_path / "out" / "summary.json").exists()


def test_the_marker_says_what_the_shard_holds(tmp_path: Path) -> None:
    folder = write_recordings(tmp_path / "in", 3)
    run_transcribe_job(job(folder, tmp_path / "out"), CountingWorker)
    marker = json.loads((tmp_path / "out" / "transcripts-00001-of-00001.done.json").read_text())
    content = (tmp_path / "out" / "transcripts-00001-of-00001.jsonl").read_bytes()
    assert marker["sha256"] == hashlib.sha256(content).hexdigest()
    assert marker["bytes"] == len(content)
    assert marker["audio_seconds"] == pytest.approx(sum(4000 + 37 * number for number in range(3)) / 16_000, abs=0.01)
