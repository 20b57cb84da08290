"""Measure how much memory a model needs, in total and by stage.

Promises: peaks are the operating system's and the accelerator's own counts, in bytes; nothing is sampled, so no short
peak is missed. On systems that cannot reset their count (any but Linux), only the peak of the whole process is given.
The count includes everything in the process, also Python and its libraries.
"""

import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from asr_doge.audio.reading import read_audio
from asr_doge.benchmark.stages import STAGES, Stage, observed
from asr_doge.inference.transcription import Transcriber

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_CLEAR_PEAK = "5"


@dataclass(frozen=True)
class StageMemory:
    """Peaks within a stage, in bytes: of the process, and of what it holds on the accelerator (None without one)."""

    peak_rss_bytes: int
    peak_device_bytes: int | None


@dataclass(frozen=True)
class MemoryResult:
    """Memory in bytes.

    Attributes:
        weights_bytes: the model's parameters and buffers.
        peak_rss_bytes: peak of the process so far, accuracy and speed runs included.
        peak_device_bytes: the same for the accelerator; None without one.
        clip_seconds: length of the clip on which the stages were measured, at batch size 1.
        stages: peaks by stage; empty if the system does not provide them.
    """

    weights_bytes: int
    peak_rss_bytes: int
    peak_device_bytes: int | None
    clip_seconds: float
    stages: dict[str, StageMemory]


class StagePeaks:
    """An observer that records the peak of each stage, the highest if a stage occurs several times."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.peaks: dict[str, StageMemory] = {}

    def enter(self, stage: Stage) -> None:
        """Reset the count."""
        clear_peaks(self._device)

    def leave(self, stage: Stage) -> None:
        """Record the count."""
        before, rss, device = self.peaks.get(stage), peak_rss(), peak_device(self._device)
        if before is not None:
            rss = max(rss, before.peak_rss_bytes)
            device = max(device, before.peak_device_bytes or 0) if device is not None else None
        self.peaks[stage] = StageMemory(rss, device)


def measure_memory(transcriber: Transcriber, path: str | Path) -> MemoryResult:
    """Measure the peaks while one clip is transcribed.

    Raises:
        AudioError: it cannot be read.
    """
    loaded = transcriber.recognizer.loaded
    so_far_rss, so_far_device = peak_rss(), peak_device(loaded.device)
    counts_stages = clear_peaks(loaded.device)
    watch = StagePeaks(loaded.device)
    with observed(loaded, watch):
        watch.enter("audio")
        waveform = read_audio(path, transcriber.sampling_rate)
        watch.leave("audio")
        transcriber.transcribe(waveform)
    tensors = (*loaded.module.parameters(), *loaded.module.buffers())
    peaks = [*(peak.peak_rss_bytes for peak in watch.peaks.values()), so_far_rss]
    device_peaks = [peak.peak_device_bytes for peak in watch.peaks.values()]
    return MemoryResult(
        weights_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        peak_rss_bytes=max(peaks),
        peak_device_bytes=None if so_far_device is None else max(so_far_device, *(peak or 0 for peak in device_peaks)),
        clip_seconds=len(waveform) / transcriber.sampling_rate,
        stages={stage: watch.peaks[stage] for stage in STAGES if stage in watch.peaks} if counts_stages else {},
    )


def peak_rss() -> int:
    """Peak memory of this process since the count was last reset, in bytes."""
    if _STATUS.exists():  # not `getrusage`, whose count a new process inherits from its parent
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, the others KiB


def peak_device(device: torch.device) -> int | None:
    """Peak memory of tensors on the accelerator since the count was last reset; None on the CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def clear_peaks(device: torch.device) -> bool:
    """Reset the counts; whether the system lets a process reset its own."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        _CLEAR_REFS.write_text(_CLEAR_PEAK)
    except OSError:
        return False
    return True
