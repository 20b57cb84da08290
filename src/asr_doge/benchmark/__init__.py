"""Measuring a checkpoint."""

from asr_doge.benchmark.benchmark import ASRDogeBenchmark, BenchmarkConfig, BenchmarkResult, SampleResult, SpeedResult

__all__ = ["ASRDogeBenchmark", "BenchmarkConfig", "BenchmarkResult", "SampleResult", "SpeedResult"]
