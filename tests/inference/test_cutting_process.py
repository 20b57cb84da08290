"""A long recording is cut in another process, into the same chunks, and survives it."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from asr_doge.audio import SAMPLE_RATE, Voice, synthesize
from asr_doge.inference import cutting_process
from asr_doge.inference.chunk_header import HEADER_BYTES
from asr_doge.inference.chunking import BLOCK_SAMPLES, Chunk, Chunker, Cutter, cut_with
from asr_doge.inference.cutting_process import RecordingCutter

SPOKEN = np.tile(np.concatenate([synthesize("one two three", Voice()), np.zeros(9_001, dtype=np.float32)]), 3)
QUIET = 0.3 * SPOKEN[::-1].copy()
BREATHLESS = np.tile(synthesize("seven", Voice())[4_000:8_000], 30)
LONGEST = 2.0
BLOCK = 4_097


@pytest.fixture(autouse=True, scope="module")
def ended() -> Iterator[None]:
    """A process that waits serves the next test too, since a start takes half a second."""
    yield
    end_waiting()
    assert processes() == []


@pytest.fixture(autouse=True)
def moved_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recordings move after a second in all, on two processors."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(cutting_process, "MOVE_SECONDS", 1.0)
    monkeypatch.setattr(cutting_process._CuttingProcess, "seconds_without", 0.0)
    monkeypatch.setattr(cutting_process._CuttingProcess, "can_run", True)


def end_waiting() -> None:
    while cutting_process._CuttingProcess.waiting:
        cutting_process._CuttingProcess.waiting.pop().end()


def processes() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if cutting_process.MODULE in child.cmdline()]


def blocks(samples: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    return [samples[start : start + BLOCK] for start in range(0, len(samples), BLOCK)]


def fed(cutter: Cutter, samples: NDArray[np.float32]) -> list[Chunk]:
    """The recording goes on afterwards."""
    return [chunk for block in blocks(samples) for chunk in cutter.feed(block)]


def compared(chunks: list[Chunk]) -> list[Any]:
    return [(chunk.samples.tolist(), *astuple(chunk)[1:]) for chunk in chunks]


def cut_here(recording: NDArray[np.float32], longest: float = LONGEST) -> list[Any]:
    """In one piece, without a process."""
    return compared(list(cut_with(Chunker(longest), [recording])))


def cut(recording: NDArray[np.float32], longest: float = LONGEST) -> list[Any]:
    with RecordingCutter(longest) as cutter:
        return compared(list(cut_with(cutter, blocks(recording))))


def assert_whole(chunks: list[Chunk], recording: NDArray[np.float32]) -> None:
    """Every sample is in a chunk that says where it is."""
    reached = 0
    for chunk in chunks:
        start = round(chunk.start * SAMPLE_RATE)
        assert start == reached - round(chunk.overlap_before * SAMPLE_RATE)
        reached = start + len(chunk.samples)
        np.testing.assert_array_equal(chunk.samples, recording[start:reached])
    assert reached == len(recording)


@pytest.mark.parametrize("longest", [LONGEST, 8.0])
def test_the_chunks_are_the_same_and_the_process_is_used_again(longest: float) -> None:
    found = set()
    for recording in (SPOKEN, QUIET, SPOKEN[20_000:], BREATHLESS, QUIET[:9_000], QUIET[:0]):
        assert cut(recording, longest) == cut_here(recording, longest)
        (process,) = processes()
        found.add(process.pid)
    assert len(found) == 1
    assert any(chunk.overlap_after for chunk in cut_with(Chunker(LONGEST), [BREATHLESS]))


def test_recordings_in_several_threads_are_told_apart() -> None:
    chunks: dict[int, list[Any]] = {}
    together = threading.Barrier(2)

    def cut_one(number: int) -> None:
        with RecordingCutter(LONGEST) as cutter:
            together.wait()
            chunks[number] = compared(list(cut_with(cutter, blocks(number * QUIET))))
            together.wait()

    threads = [threading.Thread(target=cut_one, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert chunks == {number: cut_here(number * QUIET) for number in (1, 2)}
    assert len(processes()) == cutting_process.MOST_WAITING


def test_a_short_recording_starts_no_process_but_several_do() -> None:
    end_waiting()
    short = SPOKEN[:6_000]
    for count in (0, 0, 1, 1):
        assert cut(short) == cut_here(short)
        assert len(processes()) == count


@pytest.mark.parametrize("lack", ["processors", "python", "descriptors", "package"])
def test_where_no_process_can_cut_it_stays_here(lack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    end_waiting()
    if lack == "processors":
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    elif lack == "python":
        monkeypatch.setattr(sys, "executable", None)
    elif lack == "package":
        monkeypatch.setattr(cutting_process, "MODULE", "asr_doge.no_such_module")
    else:

        def refused(*_: Any, **options: Any) -> None:
            raise OSError(errno.EMFILE, "too many open files")

        monkeypatch.setattr(subprocess, "Popen", refused)
    assert cut(SPOKEN) == cut_here(SPOKEN)
    assert processes() == []


@pytest.mark.parametrize(("recording", "share"), [(SPOKEN, 1.0), (BREATHLESS, 0.6)], ids=["pauses", "overlaps"])
def test_a_recording_survives_the_death_of_its_process(recording: NDArray[np.float32], share: float) -> None:
    part = round(share * len(recording))
    with RecordingCutter(LONGEST) as cutter:
        chunks = fed(cutter, recording[:part])
        before = len(chunks)
        processes()[0].kill()
        chunks += [*fed(cutter, recording[part:]), *cutter.finish()]
    assert_whole(chunks, recording)
    assert compared(chunks[:before]) == cut_here(recording)[:before]
    assert all(len(chunk.samples) <= LONGEST * SAMPLE_RATE for chunk in chunks)


def test_a_process_that_died_while_it_waited_is_replaced() -> None:
    for _ in range(2):
        assert cut(SPOKEN) == cut_here(SPOKEN)
        (process,) = processes()
        process.kill()
        process.wait()


def test_a_reader_that_leaves_early_leaves_nothing_of_its_recording() -> None:
    with RecordingCutter(LONGEST) as cutter:
        fed(cutter, SPOKEN[:-9_000])
    assert cut(QUIET) == cut_here(QUIET)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_goes_on_by_itself() -> None:
    half = len(SPOKEN) // 2
    with RecordingCutter(LONGEST) as cutter:
        before = fed(cutter, SPOKEN[:half])
        child = os.fork()
        if child == 0:
            status = 1
            try:
                assert_whole([*before, *fed(cutter, SPOKEN[half:]), *cutter.finish()], SPOKEN)
                status = 0
            finally:
                os._exit(status)
        after = [*fed(cutter, SPOKEN[half:]), *cutter.finish()]
        assert os.waitpid(child, 0)[1] == 0
    assert compared(before + after) == cut_here(SPOKEN)


def test_modules_beside_the_recordings_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end_waiting()
    (tmp_path / "numpy.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    assert cut(SPOKEN) == cut_here(SPOKEN)
    assert len(processes()) == 1


def test_another_thread_works_while_it_cuts() -> None:
    """The process is stopped within a request, whose thread must not hold Python's lock meanwhile."""
    with RecordingCutter(LONGEST) as cutter:
        chunks = fed(cutter, SPOKEN)
        (process,) = processes()
        process.suspend()
        rest: list[Chunk] = []
        asking = threading.Thread(target=lambda: rest.extend(cutter.finish()))
        asking.start()
        worked = sum(range(1_000_000))
        assert rest == []
        process.resume()
        asking.join()
    assert worked == 499_999_500_000
    assert compared(chunks + rest) == cut_here(SPOKEN)


def test_a_recording_in_one_block_is_cut_like_one_in_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """In no more memory, as each chunk keeps little beside its own samples; and the process is not asked for more than
    a pipe can hold the answer to, or each would wait for the other."""
    sizes = []
    feed = cutting_process._CuttingProcess.feed

    def noted(process: Any, samples: NDArray[np.float32], max_seconds: float) -> list[tuple[int, bytes]]:
        sizes.append(len(samples))
        return feed(process, samples, max_seconds)

    monkeypatch.setattr(cutting_process._CuttingProcess, "feed", noted)
    whole = np.tile(BREATHLESS, 5)
    with RecordingCutter(LONGEST) as cutter:
        chunks = [*cutter.feed(whole), *cutter.finish()]
    assert compared(chunks) == cut_here(whole)
    for chunk in chunks:
        held = chunk.samples.base if chunk.samples.base is not None else chunk.samples
        assert len(held) <= LONGEST * SAMPLE_RATE + 3 * BLOCK_SAMPLES
    shortest = Chunker(0.0).longest
    assert (max(sizes) // shortest + 2) * (HEADER_BYTES + 4) < 4096


def test_a_process_that_was_left_within_a_request_is_used_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    end_waiting()

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with RecordingCutter(LONGEST) as cutter, monkeypatch.context() as patch:
        patch.setattr(cutting_process._CuttingProcess, "_ask", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fed(cutter, SPOKEN)
    assert processes() == []
    assert cut(SPOKEN) == cut_here(SPOKEN)


def test_where_something_is_printed_at_the_start_it_is_cut_here_and_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_waiting()
    (tmp_path / "sitecustomize.py").write_text("print('hello')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    assert cut(SPOKEN) == cut_here(SPOKEN)
    monkeypatch.setattr(subprocess, "Popen", pytest.fail)
    assert cut(SPOKEN) == cut_here(SPOKEN)
    assert processes() == []
