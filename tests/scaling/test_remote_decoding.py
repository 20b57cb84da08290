"""Decode workers: samples are those of decoding here, whatever becomes of who decodes, and no job depends on them."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from asr_doge.errors import AudioError, ConfigError
from asr_doge.scaling import ray_engine
from asr_doge.scaling.configuration import TranscribeJobConfig
from asr_doge.scaling.item_reading import ItemReader, item_reader
from asr_doge.scaling.items import FetchError, Item
from asr_doge.scaling.jobs import plan_transcribe_job, run_transcribe_job
from tests.scaling.conftest import MEMORY, check_complete, job, lines, write_recordings
from tests.scaling.counting import CountingWorker, FarDecodingWorker
from tests.scaling.fragile.sitecustomize import DECODER_SECONDS
from tests.waiting import until

ray = pytest.importorskip("ray")
RATE = 16_000
Samples = NDArray[np.float32]


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of 101.3 s, which no piece holds whole and whose samples all differ from their neighbours."""
    path = tmp_path_factory.mktemp("long") / "long.wav"
    ramp = np.arange(round(101.3 * RATE)) % 30_011 - 15_000
    soundfile.write(path, ramp.astype(np.int16), RATE)
    return path


@contextmanager
def reading(decode_workers: int = 1, **options: Any) -> Iterator[Any]:
    """A reader with decode workers that have arrived, if there is room."""
    defaults: dict[str, Any] = {"max_attempts": 1, "decoders": 1, "engine": "ray", "wait_for_workers": 60.0}
    reader = item_reader(TranscribeJobConfig(files=[], decode_workers=decode_workers, **defaults | options))
    try:
        reader.start()
        yield reader
    finally:
        reader.close()


@contextmanager
def no_core_free() -> Iterator[None]:
    """Others hold the cores of both nodes."""

    class Other:
        def is_there(self) -> bool:
            return True

    others = [ray.remote(Other).options(num_cpus=1).remote() for _ in range(2)]
    ray.get([other.is_there.remote() for other in others])
    yield
    for other in others:
        ray.kill(other)
    until(lambda: ray.available_resources().get("CPU") == 2)


def read(reader: ItemReader, item: Item) -> Samples:
    return np.concatenate(list(reader.blocks(item, lambda note: None, threading.Event())))


def expected(path: Path, start: float = 0.0, seconds: float | None = None) -> Samples:
    samples, _ = soundfile.read(path, dtype="float32")
    begin = round(start * RATE)
    part: Samples = samples[begin : None if seconds is None else begin + round(seconds * RATE)]
    return part


def refuse(item: Item) -> None:
    raise AudioError(f"{item.name} is opened here")


def test_samples_are_those_of_the_file(cluster: Any, long: Path, tmp_path: Path) -> None:
    """Whole or in part, of one piece or several; and a fault is that of decoding here."""
    (tmp_path / "bad.wav").write_text("no audio")
    with reading() as reader:
        reader._opened = refuse

        @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
        @given(st.floats(0, 101), st.one_of(st.none(), st.floats(0.001, 101)))
        def check(start: float, seconds: float | None) -> None:
            item = Item(str(long), offset=start, duration=seconds)
            np.testing.assert_array_equal(read(reader, item), expected(long, start, seconds))

        check()
        np.testing.assert_array_equal(read(reader, Item(str(long))), expected(long))
        with pytest.raises(AudioError, match=r"part would begin at 200"):
            read(reader, Item(str(long), offset=200.0, duration=1.0))
        here = ItemReader(1, 1, 500_000_000, None)
        faults = []
        for each in (reader, here):
            with pytest.raises(AudioError) as fault:
                read(each, Item(str(tmp_path / "bad.wav")))
            faults.append(str(fault.value))
        here.close()
        assert faults[0] == faults[1]


def test_one_whose_reader_leaves_decodes_the_next_recording(cluster: Any, long: Path) -> None:
    with reading() as reader:
        reader._opened = refuse
        for _ in range(3):
            cancelled = threading.Event()
            blocks = reader.blocks(Item(str(long)), lambda note: None, cancelled)
            next(blocks)
            cancelled.set()
            blocks.close()
        np.testing.assert_array_equal(read(reader, Item(str(long))), expected(long))


def test_one_that_dies_is_replaced_and_its_recording_goes_on_here(cluster: Any, long: Path) -> None:
    with reading() as reader:
        (worker,) = reader._workers._free
        blocks = reader.blocks(Item(str(long)), lambda note: None, threading.Event())
        first = next(blocks)
        ray.kill(worker)
        np.testing.assert_array_equal(np.concatenate([first, *blocks]), expected(long))
        until(lambda: reader._workers.wait() == 1)
        reader._opened = refuse
        np.testing.assert_array_equal(read(reader, Item(str(long))), expected(long))


def test_a_lost_node_of_decode_workers_costs_nothing(cluster: Any, long: Path) -> None:
    with no_core_free():
        node = cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
        with reading() as reader:
            assert len(reader._workers._free) == 1
            blocks = reader.blocks(Item(str(long)), lambda note: None, threading.Event())
            first = next(blocks)
            cluster.remove_node(node, allow_graceful=False)
            np.testing.assert_array_equal(np.concatenate([first, *blocks]), expected(long))
            np.testing.assert_array_equal(read(reader, Item(str(long))), expected(long))


def test_without_a_free_core_recordings_are_decoded_here(cluster: Any, long: Path) -> None:
    """Where the dead are replaced only so often, since each would wait for a core."""
    with no_core_free(), reading(wait_for_workers=0.5) as reader:
        assert reader._workers._coming == {}
        np.testing.assert_array_equal(read(reader, Item(str(long))), expected(long))
        reader._config.wait_for_workers = 60.0
        for _ in range(5):
            reader._workers.replace(None)
        assert len(reader._workers._coming) == 3


def test_a_recording_that_its_node_lacks_is_read_here(cluster: Any, long: Path) -> None:
    """By the path of a descriptor that only this process has; what is nowhere is told as ever."""
    with reading() as reader, long.open("rb") as file:
        os.dup2(file.fileno(), 923)
        try:
            np.testing.assert_array_equal(read(reader, Item("/proc/self/fd/923")), expected(long))
        finally:
            os.close(923)
        with pytest.raises(FetchError, match=r"gone\.wav was listed and is not on"):
            read(reader, Item("/nowhere/gone.wav", "1-1"))
        reader._opened = refuse
        np.testing.assert_array_equal(read(reader, Item(str(long))), expected(long))


def test_one_of_another_version_is_one_line(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine, "version", lambda name: "0.0")
    with (
        pytest.raises(ConfigError, match=r"has asr-doge .*, and this machine 0\.0: install the same on all$"),
        reading(),
    ):
        pass


def on_ray(folder: Path, output: Path, **settings: object) -> TranscribeJobConfig:
    return job(folder, output, **{"engine": "ray", "workers": "1", "decode_workers": 1, "max_attempts": 1} | settings)


def test_lines_are_those_of_the_local_engine(cluster: Any, tmp_path: Path) -> None:
    """Each node has one core, so decoder and model are on different ones; the model's opens no recording."""
    folder = write_recordings(tmp_path / "in", 9, crashes=5)
    whole = (folder / "003.wav").read_bytes()
    (folder / "003.wav").write_bytes(whole[: len(whole) // 2])
    run_transcribe_job(job(folder, tmp_path / "local", max_attempts=1), CountingWorker)
    run_transcribe_job(on_ray(folder, tmp_path / "ray"), FarDecodingWorker)
    assert lines(tmp_path / "ray") == lines(tmp_path / "local")
    assert sum("text" in line for line in lines(tmp_path / "ray")) >= 7


def test_every_kind_of_poison_is_named(cluster: Any, tmp_path: Path) -> None:
    folder = write_recordings(tmp_path / "in", 14, crashes=1, hangs=4, raises=6, kills=9, bloats=12)
    run_transcribe_job(on_ray(folder, tmp_path / "out"), FarDecodingWorker)
    check_complete(
        folder,
        tmp_path / "out",
        crashes="crashes its decoder (SIGSEGV)",
        hangs=f"none of it came in {DECODER_SECONDS} s",
        raises="given up after attempt 1: RuntimeError: a defect in a stage",
        kills="given up after attempt 1: its worker died",
        bloats="emory",
    )


def test_a_job_without_a_free_core_says_so_in_a_line(
    cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_recordings(tmp_path / "in", 8)
    run_transcribe_job(on_ray(folder, tmp_path / "out", workers="1:2", wait_for_workers=10.0), CountingWorker)
    check_complete(folder, tmp_path / "out")
    told = [line for line in capsys.readouterr().err.splitlines() if "note" in line]
    assert told == [
        "note: 0 of 1 decode workers of a worker found a core in 10 s: it decodes 1 recordings at once by itself"
    ]


def test_too_few_cores_for_decode_workers_are_noted(
    cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ray_engine._note_room(ray, on_ray(tmp_path, tmp_path), 1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: 1 workers and 2 decode workers of each take 3 cores, and the cluster has 2: ")
    ray_engine._note_room(ray, on_ray(tmp_path, tmp_path), 1, 1)
    assert capsys.readouterr().err == ""


def test_a_plan_counts_decode_workers_and_needs_no_cluster(tmp_path: Path) -> None:
    folder = write_recordings(tmp_path / "in", 9)
    config = job(folder, tmp_path / "out", engine=None, plan=True, workers="2", decode_workers=4)
    told = dict(line.split(maxsplit=1) for line in plan_transcribe_job(config, CountingWorker).lines())
    assert told["time"].endswith("with 2 workers and 0 GPUs, and 8 decode workers of a core each")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"engine": "local"}, "^--decode_workers are processes on a cluster: add --engine ray, or raise --decoders$"),
        ({"decode_workers": -1}, "^--decode_workers -1 cannot be used: it must be at least 0$"),
    ],
)
def test_a_flag_that_does_not_go_is_one_line(tmp_path: Path, flags: dict[str, object], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        on_ray(tmp_path, tmp_path / "out", **flags).check_job()
