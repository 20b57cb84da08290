"""The fault matrix: whatever dies on a cluster of two nodes, nothing is lost or doubled, and poison is named."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from asr_doge.audio.file_decoding import FileDecoder
from asr_doge.benchmark.report import read_report
from asr_doge.cli import benchmark, features, process
from asr_doge.cli.configuration import BenchmarkJobConfig
from asr_doge.data.manifest import read_manifest
from asr_doge.errors import ConfigError, DataError
from asr_doge.inference.configuration import FeaturesConfig
from asr_doge.inference.features import compute_features
from asr_doge.scaling import ray_engine
from asr_doge.scaling.configuration import FeaturesJobConfig, ProcessJobConfig
from asr_doge.scaling.jobs import run_transcribe_job
from tests import speech
from tests.scaling.conftest import MEMORY, check_complete, job, lines, read_again, write_recordings
from tests.scaling.counting import CountingWorker, SlowlyLoadingWorker
from tests.scaling.fragile.sitecustomize import CRASHES, DECODER_SECONDS
from tests.waiting import until

pytest.importorskip("ray")


def on_ray(folder: Path, output: Path, **settings: object) -> Any:
    return job(folder, output, **{"engine": "ray", "workers": "1:2"} | settings)


@contextmanager
def meanwhile(folder: Path, act: Callable[[list[int]], None], workers: int = 2) -> Iterator[None]:
    """When so many workers wait, do something, with their processes' numbers; then let the rest go on."""

    def do() -> None:
        until(lambda: len([path for path in folder.glob("*.pid") if path.stat().st_size]) >= workers)
        act([int(path.read_text()) for path in folder.glob("*.pid")])
        (folder / "go").touch()

    thread = threading.Thread(target=do)
    thread.start()
    yield
    thread.join()


def waiting_recordings(folder: Path, count: int = 16) -> Path:
    """Recordings of which the third of every shard of four waits."""
    write_recordings(folder, count)
    for number in range(2, count, 4):
        (folder / f"{number:03}.wav").rename(folder / f"{number:03}waits.wav")
    return folder


def test_poison_is_named_and_costs_itself_alone(cluster: Any, tmp_path: Path) -> None:
    """Poison of every kind in one job, one in a shard."""
    poison = {
        "crashes": "crashes its decoder (SIGSEGV)",
        "hangs": f"none of it came in {DECODER_SECONDS} s",
        "raises": "given up after attempt 1: RuntimeError: a defect in a stage",
        "kills": "given up after attempt 1: its worker died",
        "bloats": "emory",
    }
    folder = write_recordings(tmp_path / "in", 19, **{kind: 1 + 4 * shard for shard, kind in enumerate(poison)})
    run_transcribe_job(on_ray(folder, tmp_path / "out", max_attempts=1), CountingWorker)
    check_complete(folder, tmp_path / "out", **poison)


def test_a_killed_worker_is_replaced(cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = waiting_recordings(tmp_path / "in")
    with meanwhile(folder, lambda processes: os.kill(processes[0], signal.SIGKILL)):
        run_transcribe_job(on_ray(folder, tmp_path / "out"), CountingWorker)
    check_complete(folder, tmp_path / "out")
    assert "a worker failed (" in capsys.readouterr().err
    (again,) = read_again(folder)  # and not those before it in its shard, whose lines are kept
    assert "waits" in again


def test_a_lost_node_makes_the_job_slower_only(cluster: Any, tmp_path: Path) -> None:
    node = cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
    folder = waiting_recordings(tmp_path / "in")
    with meanwhile(folder, lambda _: cluster.remove_node(node, allow_graceful=False), workers=3):
        run_transcribe_job(on_ray(folder, tmp_path / "out", workers="1:3"), CountingWorker)
    check_complete(folder, tmp_path / "out")


def test_a_killed_driver_is_gone_on_from(cluster: Any, tmp_path: Path) -> None:
    folder, out = waiting_recordings(tmp_path / "in"), tmp_path / "out"
    driver = driver_process(cluster, folder, out)
    until(lambda: len(list(folder.glob("*.pid"))) == 2)
    (folder / "go").touch()
    until(lambda: len(lines(out)) > 0)
    driver.kill()
    driver.wait()
    known = {path: path.stat().st_mtime_ns for path in out.glob("*.done.json")}
    run_transcribe_job(on_ray(folder, out), CountingWorker)
    check_complete(folder, out)
    assert {path: path.stat().st_mtime_ns for path in known} == known


def test_two_drivers_on_one_output_double_nothing(cluster: Any, tmp_path: Path) -> None:
    folder = write_recordings(tmp_path / "in", 14, crashes=5)
    other = driver_process(cluster, folder, tmp_path / "out", workers="1")
    run_transcribe_job(on_ray(folder, tmp_path / "out", workers="1"), CountingWorker)
    assert other.wait() == 0
    check_complete(folder, tmp_path / "out", crashes="SIGSEGV")


def test_a_full_disk_is_one_line_of_the_driver(cluster: Any, tmp_path: Path, small_disk: Path) -> None:
    folder = write_recordings(tmp_path / "in", 20)
    fill = small_disk / "fill"
    fill.write_bytes(b"x" * (2 * 1024 * 1024 - 50_000))
    settings = {"shard_size": 1, "workers": "1"}
    with pytest.raises(DataError, match="check the folder and the free space"):
        run_transcribe_job(on_ray(folder, small_disk / "out", **settings), CountingWorker)
    fill.unlink()
    run_transcribe_job(on_ray(folder, small_disk / "out", **settings), CountingWorker)
    check_complete(folder, small_disk / "out")


def test_texts_are_those_of_the_local_engine(cluster: Any, tmp_path: Path) -> None:
    folder = write_recordings(tmp_path / "in", 6)
    for engine in ("local", "ray"):
        run_transcribe_job(job(folder, tmp_path / engine, engine=engine, workers="1"))
    assert lines(tmp_path / "ray") == lines(tmp_path / "local")


def test_a_node_that_is_lost_while_its_workers_load_is_no_fault_of_the_model(cluster: Any, tmp_path: Path) -> None:
    node = cluster.add_node(num_cpus=4, object_store_memory=MEMORY)
    folder = write_recordings(tmp_path / "in", 24)
    with meanwhile(folder, lambda _: cluster.remove_node(node, allow_graceful=False), workers=6):
        run_transcribe_job(on_ray(folder, tmp_path / "out", workers="1:6"), SlowlyLoadingWorker)
    check_complete(folder, tmp_path / "out")


def test_what_cannot_be_fetched_is_fetched_later(cluster: Any, tmp_path: Path) -> None:
    folder = write_recordings(tmp_path / "in", 6)
    for number in (1, 2, 5):
        (folder / f"{number:03}.wav").rename(folder / f"{number:03}away.wav")
    summary = run_transcribe_job(on_ray(folder, tmp_path / "out", max_attempts=1), CountingWorker)
    assert (summary.left, summary.transcribed, summary.failed) == ([], 6, [])


def test_features_are_those_of_one_process(
    cluster: Any, tmp_path: Path, granite_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a recording that ends its decoder: it costs itself alone, and is named."""
    corpus = speech.write_corpus(tmp_path / "corpus")
    bad = read_manifest(corpus / "train_manifest.json")[3]
    Path(bad.audio_path).write_bytes(CRASHES)
    settings: dict[str, Any] = {"data_dir": str(corpus), "speech_encoder": str(granite_folder), "device": "cpu"}
    decoder = FileDecoder(500_000_000)
    alone = FeaturesConfig(output_dir=str(tmp_path / "alone"), shard_minutes=0.1, **settings)
    report = compute_features(alone, decoder.read_clip)
    decoder.close()
    assert (report.encoded, len(report.failed)) == (15, 1)
    capsys.readouterr()
    shared = FeaturesJobConfig(
        output_dir=str(tmp_path / "shared"), engine="ray", workers="2", shard_minutes=0.1, **settings
    )
    assert features.run(shared) == 0
    told = capsys.readouterr()
    assert f"left out: {bad.audio_path} crashes its decoder (SIGSEGV): convert it to WAV or FLAC." in told.err
    assert "15 utterances encoded, 0 kept, 1 unreadable" in told.out
    files = sorted(path.name for path in (tmp_path / "alone").glob("*.safetensors"))
    assert len(files) > 1
    for name in files:
        assert (tmp_path / "shared" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_manifests_are_those_of_one_process(cluster: Any, tmp_path: Path) -> None:
    """But for a recording that ends whatever process looks at it."""
    folder = write_recordings(tmp_path / "in" / "all", 40, crashes=17)
    for number, path in enumerate(sorted(folder.glob("*.wav"))):
        path.with_suffix(".txt").write_text(f"number {number}")
    splits: dict[str, Any] = {"train_split": "all", "dev_split": "", "test_split": "", "min_duration": 0.3}
    process.run(ProcessJobConfig(tmp_path / "in", tmp_path / "alone", "folder", **splits))
    process.run(ProcessJobConfig(tmp_path / "in", tmp_path / "shared", "folder", engine="ray", workers="2", **splits))
    name = "train_manifest.json"
    assert (tmp_path / "shared" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    dropped = (tmp_path / "shared" / "dropped.tsv").read_text()
    assert "017crashes.wav ended 2 workers" in dropped
    alone = (tmp_path / "alone" / "dropped.tsv").read_text()
    assert [line.split("\t")[:3] for line in dropped.splitlines()] == [
        line.split("\t")[:3] for line in alone.splitlines()
    ]


def test_a_benchmark_is_that_of_one_process(cluster: Any, tmp_path: Path) -> None:
    corpus = speech.write_corpus(tmp_path / "corpus")
    settings: dict[str, Any] = {"data_dir": str(corpus), "num_speed_runs": 1, "num_warmup_runs": 0, "batch_sizes": [1]}
    settings |= {"device": "cpu", "embed_audio": False}
    benchmark.run(BenchmarkJobConfig(output_dir=str(tmp_path / "alone"), **settings))
    shared = BenchmarkJobConfig(output_dir=str(tmp_path / "shared"), engine="ray", workers="1", **settings)
    benchmark.run(shared)
    alone, joined = (read_report(next((tmp_path / name).glob("*.json"))) for name in ("alone", "shared"))
    assert [sample.id for sample in joined.samples] == [sample.id for sample in alone.samples]
    assert [sample.hypothesis for sample in joined.samples] == [sample.hypothesis for sample in alone.samples]
    assert "engine" not in alone.config  # which no figure depends on
    assert not list((tmp_path / "shared").glob("parts*"))


def test_too_few_resources_are_one_line(cluster: Any, tmp_path: Path) -> None:
    folder = write_recordings(tmp_path / "in", 9)
    with pytest.raises(ConfigError, match=r"0 of at least 2 workers .* 2 nodes have room for 0 of 64 CPU and 0 GPU"):
        run_transcribe_job(
            on_ray(folder, tmp_path / "out", workers="2", num_cpus_per_worker=64, wait_for_workers=0.5), CountingWorker
        )


def test_too_little_room_without_the_largest_node_is_noted(
    cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any work is begun; one that fits without that node is not."""
    folder = write_recordings(tmp_path / "in", 3)
    run_transcribe_job(on_ray(folder, tmp_path / "two", workers="2", shard_size=1), CountingWorker)
    assert capsys.readouterr().err.startswith("note: if the largest node is lost, there is room for 1 workers of 2")
    run_transcribe_job(on_ray(folder, tmp_path / "one", workers="1", shard_size=1), CountingWorker)
    assert "note:" not in capsys.readouterr().err


def test_a_cluster_of_another_version_is_one_line(cluster: Any, tmp_path: Path) -> None:
    folder = write_recordings(tmp_path / "in", 1)
    driver = driver_process(cluster, folder, tmp_path / "out", before="import ray; ray.__version__ = '0.1'")
    assert driver.wait() == 1
    assert driver.stderr is not None
    (last,) = driver.stderr.read().splitlines()[-1:]
    assert last.startswith(f"asr_doge.errors.ConfigError: --ray_address {cluster.address}: Version mismatch")


def test_a_node_with_another_version_of_this_package_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^node n2 has asr-doge 0\.0, and this machine .*: install the same on all$"):
        ray_engine.check_version("n2", "0.0")


def test_an_address_where_nobody_answers_is_one_line(tmp_path: Path) -> None:
    folder = write_recordings(tmp_path / "in", 1)
    code = driver_code(folder, tmp_path / "out", "127.0.0.1:1")
    driver = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ConfigError: --ray_address 127.0.0.1:1: no cluster answers there" in driver.stderr.splitlines()[-1]


def driver_code(folder: Path, output: Path, address: str, before: str = "pass", **settings: object) -> str:
    """A job in a Python that imports neither torch nor this module, which would."""
    settings = {"engine": "ray", "workers": "1:2", "ray_address": address} | settings
    return (
        f"{before}; from pathlib import Path; from tests.scaling.conftest import job;"
        " from tests.scaling.counting import CountingWorker;"
        " from asr_doge.scaling.jobs import run_transcribe_job as run;"
        f"run(job(Path({str(folder)!r}), Path({str(output)!r}), **{settings!r}), CountingWorker)"
    )


def driver_process(cluster: Any, folder: Path, output: Path, **settings: Any) -> "subprocess.Popen[str]":
    """A driver in a process of its own."""
    code = driver_code(folder, output, cluster.address, **settings)
    return subprocess.Popen([sys.executable, "-c", code], text=True, stderr=subprocess.PIPE)
