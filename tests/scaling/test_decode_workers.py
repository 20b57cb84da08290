"""Decode workers: the samples are those of decoding here, whatever becomes of them on the way."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr_doge.errors import AudioError
from asr_doge.scaling import decode_workers
from asr_doge.scaling.configuration import TranscribeJobConfig
from asr_doge.scaling.decode_workers import DecodeWorker, Piece, SharedReader, decode_worker, item_reader
from asr_doge.scaling.items import Item
from tests.scaling.conftest import write_recordings

SETTINGS = TranscribeJobConfig(files=[], max_attempts=1, decoders=1)
RATE = 16_000


@pytest.fixture(scope="module")
def worker() -> DecodeWorker:
    return decode_worker(SETTINGS)


@pytest.fixture(scope="module")
def reader() -> Iterator[SharedReader]:
    reader = item_reader(SETTINGS)
    yield reader
    reader.close()


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of 101.3 s, which no piece holds whole and whose samples all differ from their neighbours."""
    path = tmp_path_factory.mktemp("long") / "long.wav"
    ramp = np.arange(round(101.3 * RATE)) % 30_011 - 15_000
    soundfile.write(path, ramp.astype(np.int16), RATE)
    return path


def read(reader: SharedReader, item: Item) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.concatenate(list(reader.part(item, lambda note: None, threading.Event())))


def expected(path: Path, start: float, seconds: float | None) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    samples, _ = soundfile.read(path, dtype="float32")
    begin = round(start * RATE)
    part: np.ndarray[tuple[int], np.dtype[np.float32]] = samples[
        begin : None if seconds is None else begin + round(seconds * RATE)
    ]
    return part


@pytest.mark.parametrize(("start", "seconds"), [(0.0, None), (35.7, 60.01), (100.0, None)])
@pytest.mark.parametrize("lives_for", [0, 1, 2, 99])
def test_samples_are_the_same_wherever_the_decode_worker_ends(
    worker: DecodeWorker, reader: SharedReader, long: Path, start: float, seconds: float | None, lives_for: int
) -> None:
    taken: list[Piece] = []
    deaths = []

    def take(key: str, item: Item | None) -> Piece:
        if len(taken) == lives_for:
            deaths.append(key)
            raise ConnectionError("it died")
        taken.append(worker.take(key, item))
        return taken[-1]

    reader.use([take])
    found = read(reader, Item(str(long), offset=start, duration=seconds))
    np.testing.assert_array_equal(found, expected(long, start, seconds))
    assert reader.decode_workers == ([] if deaths else [take])
    assert len(taken) >= min(lives_for, len(found) // (60 * RATE) + 1)
    assert max((sum(map(len, piece.blocks)) for piece in taken), default=0) < 60 * RATE


def test_a_recording_that_the_decode_worker_lacks_is_read_here(reader: SharedReader, tmp_path: Path) -> None:
    """Its own faults are not looked for twice, and cost the decode worker nothing."""
    folder = write_recordings(tmp_path / "in", 2, crashes=1)
    status = (folder / "000.wav").stat()
    good = Item(str(folder / "000.wav"), f"{status.st_size}-{status.st_mtime_ns}")
    worker = decode_worker(SETTINGS)

    def elsewhere(key: str, item: Item | None) -> Piece:
        assert item is not None
        return worker.take(key, Item(item.url.replace("000", "away"), item.stamp))

    reader.use([elsewhere])
    np.testing.assert_array_equal(read(reader, good), expected(folder / "000.wav", 0, None))
    reader.use([worker.take])
    with pytest.raises(AudioError, match=r"001crashes\.wav crashes its decoder \(SIGSEGV\)"):
        read(reader, Item(str(folder / "001crashes.wav"), "1-1"))
    assert reader.decode_workers == [worker.take]
    worker._reader.close()


def test_recordings_whose_reader_is_gone_are_closed(long: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = decode_worker(SETTINGS)
    worker.take("left", Item(str(long)))
    monkeypatch.setattr(decode_workers, "_IDLE_SECONDS", -1.0)
    worker.take("another", Item(str(long)))
    with pytest.raises(KeyError, match="left"):
        worker.take("left", None)
    worker._reader.close()


def test_each_decode_worker_gets_its_share(long: Path) -> None:
    """And so many recordings are read ahead that each has the next one."""
    asked: list[tuple[int, str]] = []
    gate = threading.Barrier(3, timeout=20)

    class Taking:
        def __init__(self, number: int) -> None:
            self.number = number

        def __call__(self, key: str, item: Item | None) -> Piece:
            assert item is not None
            asked.append((self.number, item.url))
            gate.wait()  # which opens when all three are asked at once
            return Piece([np.zeros(1, np.float32)], is_last=True)

    reader = SharedReader(1, 1, 500_000_000, None)
    reader.use([Taking(number) for number in range(3)])
    for reading in reader.read_ahead([Item(str(number)) for number in range(6)]):
        assert [len(block) for block in reading.blocks(lambda note: None)] == [1]
    assert sorted(number for number, _ in asked) == [0, 0, 1, 1, 2, 2]
    assert len({url for _, url in asked}) == 6
    reader.close()


def test_what_a_decode_worker_says_of_a_recording_is_told(reader: SharedReader) -> None:
    notes: list[str] = []
    reader.use([lambda key, item: Piece([np.zeros(3, np.float32)], ["it is damaged"], is_last=True)])
    assert len(list(reader.part(Item("a.wav"), notes.append, threading.Event()))) == 1
    assert notes == ["it is damaged"]
