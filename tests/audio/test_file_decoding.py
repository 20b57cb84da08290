"""Recordings decoded in a process of their own: equal samples, and what a decoder died of."""

import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

from asr_doge.audio import file_decoding
from asr_doge.audio.file_decoding import DecoderDiedError, FileDecoder
from asr_doge.audio.reading import read_audio
from asr_doge.errors import AudioError
from tests.scaling.conftest import python_path
from tests.scaling.fragile.sitecustomize import CRASHES, FAILS, FILLS_ITS_PIPE, IS_BUSY, TAKES_MEMORY
from tests.waiting import until


@pytest.fixture(scope="module")
def decoder() -> Iterator[FileDecoder]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", python_path())
        with closing(FileDecoder(memory=500_000_000)) as decoder:
            yield decoder


@pytest.fixture(scope="module")
def strict_decoder() -> Iterator[FileDecoder]:
    """Of recordings of a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", python_path())
        with closing(FileDecoder(memory=500_000_000, max_duration=1)) as decoder:
            yield decoder


def decoded(decoder: FileDecoder, path: Path, channel: int | None = None) -> "np.typing.NDArray[np.float32]":
    with path.open("rb") as file:
        return np.concatenate(list(decoder.blocks(file, path.name, threading.Event(), channel=channel)))


@pytest.mark.parametrize("channel", [None, 0, 1])
def test_samples_are_those_of_reading_it_here(decoder: FileDecoder, tmp_path: Path, channel: int | None) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, (30_011, 2)).astype(np.float32)
    path = tmp_path / "two.wav"
    soundfile.write(path, noise, 22_050)
    np.testing.assert_array_equal(decoded(decoder, path, channel), read_audio(path, channel=channel))


def test_a_crash_is_told_by_its_signal_and_costs_nothing_else(decoder: FileDecoder, tmp_path: Path) -> None:
    bad, good = tmp_path / "bad.wav", tmp_path / "good.wav"
    soundfile.write(good, np.full(4000, 0.1, dtype=np.float32), 16_000)
    bad.write_bytes(CRASHES)
    with pytest.raises(DecoderDiedError, match=r"^bad\.wav crashes its decoder \(SIGSEGV\): convert it to WAV or FLAC"):
        decoded(decoder, bad)
    assert len(decoded(decoder, good)) == 4000


def test_what_is_no_audio_is_no_death(decoder: FileDecoder, tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(AudioError, match=r"^text\.wav is not audio") as failed:
        decoded(decoder, tmp_path / "text.wav")
    assert not isinstance(failed.value, DecoderDiedError)


def test_a_crash_in_the_middle_of_a_block_is_told_by_its_signal(decoder: FileDecoder, tmp_path: Path) -> None:
    """While its pipe is full; the reader then finds a part of the block, and learns what became of the rest."""
    (tmp_path / "bad.wav").write_bytes(FILLS_ITS_PIPE)
    with (tmp_path / "bad.wav").open("rb") as file:
        blocks = decoder.blocks(file, "bad.wav", threading.Event())
        next(blocks)
        (fork,) = psutil.Process(decoder.process.pid).children()
        until(lambda: fork.status() == psutil.STATUS_SLEEPING)  # nothing but a full pipe makes it wait
        fork.send_signal(signal.SIGSEGV)
        with pytest.raises(DecoderDiedError, match=r"^bad\.wav crashes its decoder \(SIGSEGV\)"):
            next(blocks)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (IS_BUSY, r"takes too much memory or time to decode \(its share of processor time is used up\): convert"),
        (TAKES_MEMORY, r"takes too much memory or time to decode \(out of memory\): convert"),
        (FAILS, r"could not be decoded: its decoder ended without saying why\. Try again"),
    ],
)
def test_it_is_said_what_a_file_takes_too_much_of(
    strict_decoder: FileDecoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes, said: str
) -> None:
    monkeypatch.setattr(file_decoding, "LEAST_SECONDS", 1)
    monkeypatch.setattr(file_decoding, "BLOCK_SECONDS", 100)
    (tmp_path / "bad.wav").write_bytes(content)
    with pytest.raises(DecoderDiedError, match=rf"^bad\.wav {said}"):
        decoded(strict_decoder, tmp_path / "bad.wav")


def test_work_that_hangs_is_ended_like_a_decoder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    repository = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{repository / 'src'}{os.pathsep}{repository}")
    monkeypatch.setattr(file_decoding, "BLOCK_SECONDS", 1)
    soundfile.write(tmp_path / "good.wav", np.full(4000, 0.1, dtype=np.float32), 16_000)
    with (
        closing(FileDecoder(memory=500_000_000, module="tests.audio.stuck")) as decoder,
        pytest.raises(DecoderDiedError, match=r"^good\.wav takes too much memory or time to decode \(none of it came"),
    ):
        decoded(decoder, tmp_path / "good.wav")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("left", range(4))
def test_nothing_stays_open_where_descriptors_run_out(decoder: FileDecoder, tmp_path: Path, left: int) -> None:
    """Two pipes have four."""
    path = tmp_path / "good.wav"
    soundfile.write(path, np.full(4000, 0.1, dtype=np.float32), 16_000)
    with path.open("rb") as file:
        before = open_descriptors()
        with too_many_open(left), pytest.raises(AudioError, match=r"^good\.wav cannot be decoded now \(Too many open"):
            next(decoder.blocks(file, "good.wav", threading.Event()))
        assert open_descriptors() == before
    assert len(decoded(decoder, path)) == 4000


@contextmanager
def too_many_open(left: int) -> Iterator[None]:
    """Leave this process so many descriptors to open."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_descriptors()) + 20, limits[1]))
    try:
        with suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(left):
            os.close(held.pop())
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def open_descriptors() -> set[int]:
    """Of this process, but for the one that lists them."""
    return {int(path.name) for path in list(Path("/proc/self/fd").iterdir()) if path.is_symlink()}


def test_modules_beside_the_recordings_are_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And a recording may have a name relative to where the caller is."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "src"))
    monkeypatch.chdir(tmp_path)
    Path("numpy.py").write_text("raise SystemExit('this is not NumPy')")
    soundfile.write("good.wav", np.full(4000, 0.1, dtype=np.float32), 16_000)
    with closing(FileDecoder(memory=500_000_000)) as decoder:
        assert len(decoded(decoder, Path("good.wav"))) == 4000


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_file_costs_one_fork_that_holds_nothing_of_the_others(decoder: FileDecoder, tmp_path: Path) -> None:
    """Forks of two files that are read no further than their first block, so that they wait."""
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(1_000_000, dtype=np.float32), 16_000)
    with path.open("rb") as first, path.open("rb") as second:
        reading = [decoder.blocks(file, "long.wav", threading.Event()) for file in (first, second)]
        for blocks in reading:
            next(blocks)
        forks = psutil.Process(decoder.process.pid).children(recursive=True)
        assert len(forks) == 2
        one, other = (open_channels(fork.pid) for fork in forks)
        assert len(one) == len(other) == 1
        assert one != other
    assert all(len(list(blocks)) for blocks in reading)


def open_channels(process: int) -> set[str]:
    """Pipes and sockets of a process, but those that it shares with these tests as its standard output."""
    folder = Path(f"/proc/{process}/fd")
    links = {int(path.name): str(path.readlink()) for path in folder.iterdir()}
    return {link for number, link in links.items() if number > 2 and link.startswith(("pipe:", "socket:"))}
