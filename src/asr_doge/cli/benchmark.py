"""`asr-doge benchmark`: accuracy and speed of a checkpoint."""

from collections.abc import Sequence

from rich.console import Console

from asr_doge.benchmark import ASRDogeBenchmark, BenchmarkConfig, BenchmarkResult
from asr_doge.cli.arguments import parse_config
from asr_doge.cli.console import benchmark_table, quiet_libraries


def run(arguments: Sequence[str]) -> int:
    """Run the verb; returns the exit code."""
    config = _parse(arguments)
    result = _measure(config)
    console = Console()
    console.print(benchmark_table({config.checkpoint_dir: result}))
    for speaker, scores in result.accuracy_by_speaker.items():
        console.print(f"  speaker {speaker}: WER {100 * scores.wer:.2f} %, {scores.num_samples} utterances")
    unreadable = [sample for sample in result.samples if sample.error]
    for sample in unreadable:
        console.print(f"  counted as empty: {sample.error}", markup=False)
    console.print(f"report: {result.report_path}", soft_wrap=True, markup=False)
    return 0


def measure(arguments: Sequence[str]) -> BenchmarkResult:
    """Run the verb without printing what was measured."""
    return _measure(_parse(arguments))


def _parse(arguments: Sequence[str]) -> BenchmarkConfig:
    example = "asr-doge benchmark --checkpoint_dir ./checkpoints/best --data_dir ./processed"
    return parse_config("benchmark", BenchmarkConfig, arguments, example)


def _measure(config: BenchmarkConfig) -> BenchmarkResult:
    quiet_libraries()
    return ASRDogeBenchmark(config).run_full_benchmark()
