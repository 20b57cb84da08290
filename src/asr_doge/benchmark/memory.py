"""How much memory a model needs, as a whole and stage by stage.

Promises: peaks are the operating system's and the accelerator's own counts, in bytes; nothing is sampled, so no short
peak is missed. Where a system cannot start its count anew (any but Linux), only the peak of the whole process is given.
It counts the process with all that is loaded, Python and its libraries included.
"""

import resource
import sys
from contextlib import suppress
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
        peak_rss_bytes: the most that the process has held so far, accuracy and speed runs included.
        peak_device_bytes: the same of the accelerator; None without one.
        clip_seconds: length of the clip that the stages were watched on, at batch size 1.
        stages: peaks by stage; empty where the system cannot tell.
    """

    weights_bytes: int
    peak_rss_bytes: int
    peak_device_bytes: int | None
    clip_seconds: float
    stages: dict[str, StageMemory]


class StagePeaks:
    """An observer that notes the peaks of each stage, the highest where a stage comes several times."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.peaks: dict[str, StageMemory] = {}

    def enter(self, stage: Stage) -> None:
        """Count anew."""
        clear_peaks(self._device)

    def leave(self, stage: Stage) -> None:
        """Keep the count."""
        before, rss, device = self.peaks.get(stage), peak_rss(), peak_device(self._device)
        if before is not None:
            rss = max(rss, before.peak_rss_bytes)
            device = max(device, before.peak_device_bytes or 0) if device is not None else None
        self.peaks[stage] = StageMemory(rss, device)


def measure_memory(transcriber: Transcriber, path: str | Path) -> MemoryResult:
    """Watch one clip being transcribed.

    Raises:
        AudioError: it cannot be read.
    """
    model = transcriber.loaded.model
    so_far_rss, so_far_device = peak_rss(), peak_device(model.device)
    watch = StagePeaks(model.device)
    with observed(transcriber.loaded, watch):
        watch.enter("audio")
        waveform = read_audio(path, transcriber.sampling_rate)
        watch.leave("audio")
        transcriber.transcribe(waveform)
    tensors = (*model.parameters(), *model.buffers())
    peaks = [*(peak.peak_rss_bytes for peak in watch.peaks.values()), so_far_rss]
    device_peaks = [peak.peak_device_bytes for peak in watch.peaks.values()]
    return MemoryResult(
        weights_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        peak_rss_bytes=max(peaks),
        peak_device_bytes=None if so_far_device is None else max(so_far_device, *(peak or 0 for peak in device_peaks)),
        clip_seconds=len(waveform) / transcriber.sampling_rate,
        stages={stage: watch.peaks[stage] for stage in STAGES if stage in watch.peaks} if _can_clear() else {},
    )


def peak_rss() -> int:
    """Most memory that this process has held since the count last began, in bytes."""
    if _STATUS.exists():  # not `getrusage`, whose count a new process takes over from the one that started it
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, the others KiB


def peak_device(device: torch.device) -> int | None:
    """Most memory that tensors have held on the accelerator since the count last began; None on the CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def clear_peaks(device: torch.device) -> None:
    """Begin to count anew, where the system can."""
    with suppress(OSError):
        _CLEAR_REFS.write_text(_CLEAR_PEAK)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _can_clear() -> bool:
    """Whether the system lets a process begin its count anew."""
    try:
        _CLEAR_REFS.write_text(_CLEAR_PEAK)
    except OSError:
        return False
    return True
