"""Speech of a long recording is detected in another process, with the same flags, and without stopping this one."""

import os
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from asr_doge.audio import Voice, detector_process, synthesize
from asr_doge.audio.detector_process import LongRecordingDetector
from asr_doge.audio.voice_activity import VoiceActivityDetector
from asr_doge.errors import AudioError

RATE = 16_000
SPOKEN = np.tile(np.concatenate([synthesize("one two three", Voice()), np.zeros(9_001, dtype=np.float32)]), 3)
BLOCK = 4_097


@pytest.fixture(autouse=True)
def moved_early(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Recordings move after a second, on two processors, to processes that end with the test."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(detector_process, "MOVE_SECONDS", 1.0)
    monkeypatch.setattr(detector_process._DetectorProcess, "idle", [])
    yield
    for child in children():
        child.kill()
        child.wait()


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if detector_process.MODULE in child.cmdline()]


def flags_of(recording: NDArray[np.float32], detector: LongRecordingDetector | VoiceActivityDetector) -> list[bool]:
    return [
        flag for start in range(0, len(recording), BLOCK) for flag in detector.feed(recording[start : start + BLOCK])
    ]


def test_the_flags_are_the_same_and_the_process_is_used_again() -> None:
    for recording in (SPOKEN, 0.5 * SPOKEN[::-1].copy(), SPOKEN[20_000:]):
        with LongRecordingDetector() as detector:
            assert flags_of(recording, detector) == flags_of(recording, VoiceActivityDetector())
        assert len(children()) == 1


def test_recordings_at_the_same_time_are_told_apart() -> None:
    recordings = (SPOKEN, 0.3 * SPOKEN[::-1].copy())
    with LongRecordingDetector() as one, LongRecordingDetector() as other:
        flags: tuple[list[bool], list[bool]] = ([], [])
        for at in range(0, len(SPOKEN), BLOCK):
            for detector, recording, found in zip((one, other), recordings, flags, strict=True):
                found += detector.feed(recording[at : at + BLOCK])
    assert flags == tuple(VoiceActivityDetector().feed(recording) for recording in recordings)
    assert len(children()) == 2


def test_a_short_recording_starts_no_process() -> None:
    with LongRecordingDetector() as detector:
        detector.feed(SPOKEN[: RATE // 2])
    assert children() == []


@pytest.mark.parametrize("without", ["processors", "python"])
def test_where_none_can_be_started_it_stays_here(without: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if without == "python":
        monkeypatch.setattr(sys, "executable", None)
    else:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    with LongRecordingDetector() as detector:
        assert flags_of(SPOKEN, detector) == flags_of(SPOKEN, VoiceActivityDetector())
    assert children() == []


def test_a_killed_process_is_one_line_and_the_next_recording_gets_another() -> None:
    with LongRecordingDetector() as detector:
        flags_of(SPOKEN, detector)
        children()[0].kill()
        with pytest.raises(AudioError, match="was killed: try again"):
            flags_of(SPOKEN, detector)
    with LongRecordingDetector() as detector:
        assert flags_of(SPOKEN, detector) == flags_of(SPOKEN, VoiceActivityDetector())


def test_other_threads_run_while_it_works() -> None:
    """The process is stopped in the middle of a request: this one must go on meanwhile."""
    with LongRecordingDetector() as detector:
        flags_of(SPOKEN, detector)
        (child,) = children()
        child.suspend()
        asked = threading.Thread(target=detector.feed, args=(SPOKEN,))
        asked.start()
        time.sleep(0.05)
        assert asked.is_alive()
        child.resume()
        asked.join()
