"""A job on one machine: complete whatever stops it, each recording once, and poison named."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr_doge.errors import DataError
from asr_doge.scaling.items import Item
from asr_doge.scaling.jobs import run_transcribe_job
from asr_doge.scaling.shards import Job
from tests.scaling.conftest import check_complete, job, lines, python_path, write_recordings
from tests.scaling.counting import CountingWorker

CRASHED = "crashes its decoder (SIGSEGV)"
DEAD = "given up after attempt 2: its worker died"


def in_process(folder: Path, output: Path, **settings: object) -> "subprocess.Popen[str]":
    """A job in a process of its own."""
    code = (
        "from pathlib import Path; from tests.scaling.conftest import job; from tests.scaling.counting import"
        " CountingWorker; from asr_doge.scaling.jobs import run_transcribe_job as run;"
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


def test_a_decoder_that_hangs_is_left(tmp_path: Path) -> None:
    folder = write_recordings(tmp_path / "in", 3, hangs=1)
    run_transcribe_job(job(folder, tmp_path / "out", max_attempts=1), CountingWorker)
    check_complete(folder, tmp_path / "out", hangs="none of it came in 20 s")


def test_a_recording_that_kills_its_worker_is_given_up(tmp_path: Path) -> None:
    folder = write_recordings(tmp_path / "in", 6, kills=2)
    codes = []
    while not (tmp_path / "out" / "summary.json").exists():
        codes.append(in_process(folder, tmp_path / "out").wait())
        assert len(codes) < 5
    assert codes == [-signal.SIGKILL] * 3 + [0]  # once among its neighbours, twice alone
    check_complete(folder, tmp_path / "out", kills=DEAD)


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
    [({"hotword_weight": 2.0}, "--hotword_weight"), ({"shard_size": 3}, "shard_size"), ({"model": "other"}, "model")],
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


def test_a_full_disk_stops_the_job_and_loses_nothing(tmp_path: Path, small_disk: Path) -> None:
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
