"""A job whose recordings lie in a store that fails: an outage, keys that expire, and what one store denies."""

from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from asr_doge.errors import DataError
from asr_doge.scaling.jobs import run_transcribe_job
from tests.scaling.conftest import job, lines, samples, write_recordings
from tests.scaling.counting import CountingWorker


class ShakyStore(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A store of which some files cannot be fetched, for a number of times."""

    protocol = "shaky"
    down: dict[str, int] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("shaky:/")))

    def _open(self, path: str, *arguments: object, **options: object) -> object:
        name = path.rpartition("/")[2]
        if self.down.get(name, 0) > 0:
            self.down[name] -= 1
            raise ConnectionError("the store does not answer")
        return super()._open(path, *arguments, **options)


@pytest.fixture
def shaky(tmp_path: Path) -> dict[str, int]:
    """Twelve recordings at `shaky://in`; returns how often each is still to fail."""
    fsspec.register_implementation("shaky", ShakyStore, clobber=True)
    if fsspec.filesystem("memory").exists("/in"):  # another test's: this store is the whole process's
        fsspec.filesystem("memory").rm("/in", recursive=True)
    for path in write_recordings(tmp_path / "in", 12).iterdir():
        fsspec.filesystem("memory").pipe(f"/in/{path.name}", path.read_bytes())
    ShakyStore.down = {}
    return ShakyStore.down


def test_a_recording_that_cannot_be_fetched_leaves_its_shard_undone(
    tmp_path: Path, shaky: dict[str, int], no_pauses: None
) -> None:
    """And nothing is recorded of it: the store is at fault."""
    config = job(Path("shaky:/in"), tmp_path / "out", max_attempts=1)
    config.files = ["shaky://in"]
    shaky["005.wav"] = 1000
    summary = run_transcribe_job(config, CountingWorker)
    assert (summary.finished, summary.transcribed, summary.failed) == (2, 8, [])
    assert summary.left == [
        "shaky://in/005.wav cannot be opened: the store does not answer. Shard 2 is left until it can be."
    ]
    assert [path.name for path in (tmp_path / "out").glob("*-00002-of-*")] == [
        "transcripts-00002-of-00003.attempts.json"  # with the line of 004.wav
    ]
    shaky.clear()
    assert run_transcribe_job(config, CountingWorker).transcribed == 12
    assert [line["text"] for line in lines(tmp_path / "out")] == [f"{samples(number)} samples" for number in range(12)]


class DenyingStore(ShakyStore):
    """A store that keeps some of its files to itself."""

    protocol = "denying"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.removeprefix("denying:/")))

    def _open(self, path: str, *arguments: object, **options: object) -> object:
        if path.rpartition("/")[2] in self.down:
            raise PermissionError("Forbidden")
        return MemoryFileSystem._open(self, path, *arguments, **options)


@pytest.mark.parametrize(("denied", "failed"), [([5], 1), ([4, 5, 6, 7], 0)])
def test_one_recording_that_is_denied_fails_alone_and_keys_that_open_none_are_an_outage(
    tmp_path: Path, shaky: dict[str, int], no_pauses: None, denied: list[int], failed: int
) -> None:
    fsspec.register_implementation("denying", DenyingStore, clobber=True)
    config = job(Path("denying:/in"), tmp_path / "out", max_attempts=1)
    config.files = ["denying://in"]
    shaky.update({f"{number:03}.wav": 1 for number in denied})
    summary = run_transcribe_job(config, CountingWorker)
    assert (len(summary.failed), len(summary.left)) == (failed, 1 - failed)
    assert summary.transcribed == 12 - (1 if failed else 4)
    ((reason,),) = ([one[1] for one in summary.failed] or summary.left,)
    assert f"denying://in/{denied[0]:03}.wav cannot be opened: Forbidden: check your credentials." in reason


class ExpiringStore(DenyingStore):
    """A store whose keys expire when a certain file is asked for."""

    protocol = "expiring"
    last = ""

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.removeprefix("expiring:/")))

    def _open(self, path: str, *arguments: object, **options: object) -> object:
        name = path.rpartition("/")[2]
        if name == ExpiringStore.last:
            ExpiringStore.down = dict.fromkeys((f"{number:03}.wav" for number in range(12)), 1)
        if ShakyStore.down.get(name):
            ShakyStore.down[name] -= 1
            raise ConnectionError("the store does not answer")
        return super()._open(path, *arguments, **options)


@pytest.mark.parametrize("away", [0, 2])
def test_keys_that_expire_midway_cost_no_recording(
    tmp_path: Path, shaky: dict[str, int], no_pauses: None, away: int
) -> None:
    """On the first try, whose lines are kept; or on the last, which transcribed others before they expired."""
    fsspec.register_implementation("expiring", ExpiringStore, clobber=True)
    ExpiringStore.down, ExpiringStore.last = {}, "005.wav"
    config = job(Path("expiring:/in"), tmp_path / "out", max_attempts=1, shard_size=12)
    config.files = ["expiring://in"]
    shaky["002.wav"] = away
    summary = run_transcribe_job(config, CountingWorker)
    assert summary.failed == []
    assert [reason.partition(" ")[0] for reason in summary.left] == ["expiring://in/005.wav"]
    ExpiringStore.down, ExpiringStore.last = {}, ""
    assert run_transcribe_job(config, CountingWorker).transcribed == 12
    assert [line["text"] for line in lines(tmp_path / "out")] == [f"{samples(number)} samples" for number in range(12)]


@pytest.mark.parametrize("raises", ["003.wav", "003raises.wav"])
def test_what_was_denied_in_a_shard_that_was_left_is_tried_again(
    tmp_path: Path, shaky: dict[str, int], no_pauses: None, raises: str
) -> None:
    """Also where the shard is taken one by one."""
    fsspec.register_implementation("expiring", ExpiringStore, clobber=True)
    ExpiringStore.down, ExpiringStore.last = {"001.wav": 1}, ""
    config = job(Path("expiring:/in"), tmp_path / "out", max_attempts=1, shard_size=12)
    config.files = ["expiring://in"]
    fsspec.filesystem("memory").mv("/in/003.wav", f"/in/{raises}")
    shaky["005.wav"] = 1000
    assert len(run_transcribe_job(config, CountingWorker).left) == 1
    ExpiringStore.down = {}
    shaky.clear()
    summary = run_transcribe_job(config, CountingWorker)
    assert [Path(name).name for name, _ in summary.failed] == [name for name in [raises] if "raises" in name]
    assert summary.left == []


def test_a_last_recording_that_is_denied_fails_alone(tmp_path: Path, shaky: dict[str, int], no_pauses: None) -> None:
    """All others were done on an earlier try, and the store still gives them out."""
    fsspec.register_implementation("expiring", ExpiringStore, clobber=True)
    ExpiringStore.down, ExpiringStore.last = {"011.wav": 1}, ""
    config = job(Path("expiring:/in"), tmp_path / "out", max_attempts=1, shard_size=12)
    config.files = ["expiring://in"]
    summary = run_transcribe_job(config, CountingWorker)
    assert (summary.transcribed, len(summary.failed), summary.left) == (11, 1, [])


def test_a_store_that_is_down_for_good_stops_the_job(tmp_path: Path, shaky: dict[str, int], no_pauses: None) -> None:
    config = job(Path("shaky:/in"), tmp_path / "out", shard_size=2)
    config.files = ["shaky://in"]
    shaky.update({f"{number:03}.wav": 1000 for number in range(12)})
    with pytest.raises(DataError, match="the store does not answer"):
        run_transcribe_job(config, CountingWorker)
    assert not list((tmp_path / "out").glob("*.done.json"))
    shaky.update(dict.fromkeys(shaky, 1))  # and comes back while the job runs
    assert run_transcribe_job(config, CountingWorker).transcribed == 12


def test_an_outage_is_no_attempt_at_a_recording(tmp_path: Path, shaky: dict[str, int], no_pauses: None) -> None:
    """Also where its shard is taken one by one, since a worker died on another."""
    config = job(Path("shaky:/in"), tmp_path / "out", max_attempts=2)
    config.files = ["shaky://in"]
    fsspec.filesystem("memory").mv("/in/004.wav", "/in/004raises.wav")
    shaky["006.wav"] = 5
    summary = run_transcribe_job(config, CountingWorker)
    assert (summary.left, summary.transcribed, len(summary.failed)) == ([], 11, 1)
