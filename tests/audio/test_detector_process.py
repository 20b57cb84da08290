"""Speech of a long recording is detected in another process, with the same flags, and the recording survives it."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from asr_doge.audio import Voice, detector_process, synthesize
from asr_doge.audio.detector_process import LongRecordingDetector
from asr_doge.audio.voice_activity import FRAME_SAMPLES, VoiceActivityDetector

SPOKEN = np.tile(np.concatenate([synthesize("one two three", Voice()), np.zeros(9_001, dtype=np.float32)]), 3)
QUIET = 0.3 * SPOKEN[::-1].copy()
BLOCK = 4_097


@pytest.fixture(autouse=True)
def moved_early(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Recordings move after a second, on two processors, to processes that end with the test."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(detector_process, "MOVE_SECONDS", 1.0)
    yield
    while detector_process._DetectorProcess.waiting:
        detector_process._DetectorProcess.waiting.pop().end()
    assert processes() == []


def processes() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if detector_process.MODULE in child.cmdline()]


def fed(detector: LongRecordingDetector | VoiceActivityDetector, samples: NDArray[np.float32]) -> list[bool]:
    return [flag for start in range(0, len(samples), BLOCK) for flag in detector.feed(samples[start : start + BLOCK])]


def detected(recording: NDArray[np.float32]) -> list[bool]:
    """In one piece, without a process."""
    return VoiceActivityDetector().feed(recording)


def test_the_flags_are_the_same_and_the_process_is_used_again() -> None:
    found = set()
    for recording in (SPOKEN, QUIET, SPOKEN[20_000:]):
        with LongRecordingDetector() as detector:
            assert fed(detector, recording) == detected(recording)
        (process,) = processes()
        found.add(process.pid)
    assert len(found) == 1


def test_recordings_in_several_threads_are_told_apart() -> None:
    flags: dict[int, list[bool]] = {}
    together = threading.Barrier(3)

    def detect(number: int) -> None:
        with LongRecordingDetector() as detector:
            together.wait()
            flags[number] = fed(detector, number * QUIET)
            together.wait()

    threads = [threading.Thread(target=detect, args=(number,)) for number in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert flags == {number: detected(number * QUIET) for number in (1, 2, 3)}
    assert len(processes()) == detector_process.MOST_WAITING


def test_a_short_recording_starts_no_process() -> None:
    with LongRecordingDetector() as detector:
        detector.feed(SPOKEN[:8_000])
        assert processes() == []


@pytest.mark.parametrize("lack", ["processors", "python", "descriptors", "package"])
def test_where_no_process_can_detect_it_stays_here(lack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if lack == "processors":
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    elif lack == "python":
        monkeypatch.setattr(sys, "executable", None)
    elif lack == "package":
        monkeypatch.setattr(detector_process, "MODULE", "asr_doge.no_such_module")
    else:

        def refused(*_: Any, **options: Any) -> None:
            raise OSError(errno.EMFILE, "too many open files")

        monkeypatch.setattr(subprocess, "Popen", refused)
    with LongRecordingDetector() as detector:
        assert fed(detector, SPOKEN) == detected(SPOKEN)
        assert processes() == []


def test_a_recording_survives_the_death_of_its_process() -> None:
    half = len(SPOKEN) // 2
    with LongRecordingDetector() as detector:
        before = fed(detector, SPOKEN[:half])
        processes()[0].kill()
        after = fed(detector, SPOKEN[half:])
    assert before == detected(SPOKEN[:half])
    assert len(before) + len(after) == len(SPOKEN) // FRAME_SAMPLES
    assert after == detected(SPOKEN[half // FRAME_SAMPLES * FRAME_SAMPLES :])


def test_a_process_that_died_while_it_waited_is_replaced() -> None:
    for _ in range(2):
        with LongRecordingDetector() as detector:
            assert fed(detector, SPOKEN) == detected(SPOKEN)
        (process,) = processes()
        process.kill()
        process.wait()


def test_a_reader_that_leaves_early_leaves_nothing_of_its_recording() -> None:
    with LongRecordingDetector() as detector:
        fed(detector, SPOKEN[:-9_000])
    with LongRecordingDetector() as detector:
        assert fed(detector, QUIET) == detected(QUIET)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_goes_on_by_itself() -> None:
    half = len(SPOKEN) // 2
    with LongRecordingDetector() as detector:
        before = fed(detector, SPOKEN[:half])
        child = os.fork()
        if child == 0:
            flags = fed(detector, SPOKEN[half:])
            os._exit(0 if flags == detected(SPOKEN[half // FRAME_SAMPLES * FRAME_SAMPLES :]) else 1)
        after = fed(detector, SPOKEN[half:])
        assert os.waitpid(child, 0)[1] == 0
    assert before + after == detected(SPOKEN)


def test_modules_beside_the_recordings_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    with LongRecordingDetector() as detector:
        assert fed(detector, SPOKEN) == detected(SPOKEN)
        assert len(processes()) == 1


def test_another_thread_works_while_it_detects() -> None:
    """The process is stopped within a request, whose thread must not hold Python's lock meanwhile."""
    with LongRecordingDetector() as detector:
        expected = fed(detector, QUIET)
        (process,) = processes()
        process.suspend()
        flags: list[bool] = []
        asking = threading.Thread(target=lambda: flags.extend(detector.feed(QUIET[:BLOCK])))
        asking.start()
        worked = sum(range(1_000_000))
        assert flags == []
        process.resume()
        asking.join()
    assert worked == 499_999_500_000
    assert expected + flags == detected(np.concatenate([QUIET, QUIET[:BLOCK]]))
