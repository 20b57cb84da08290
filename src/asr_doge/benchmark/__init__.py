"""Measure a checkpoint: `from asr_doge.benchmark import ASRDogeBenchmark, BenchmarkConfig`."""

from typing import TYPE_CHECKING, Any

from asr_doge.benchmark.configuration import BenchmarkConfig

if TYPE_CHECKING:
    from asr_doge.benchmark.benchmark import ASRDogeBenchmark

__all__ = ["ASRDogeBenchmark", "BenchmarkConfig"]


def __getattr__(name: str) -> Any:
    """Import `ASRDogeBenchmark` on first use: it loads torch, which the settings do not need."""
    if name == "ASRDogeBenchmark":
        from asr_doge.benchmark.benchmark import ASRDogeBenchmark

        return ASRDogeBenchmark
    raise AttributeError(f"module 'asr_doge.benchmark' has no attribute '{name}'")
