"""`asr-doge benchmark`: accuracy and speed of a checkpoint."""

from rich.console import Console

from asr_doge.benchmark import ASRDogeBenchmark, BenchmarkConfig
from asr_doge.cli.console import benchmark_table, quiet_libraries


def run(config: BenchmarkConfig) -> int:
    """Run the verb; returns the exit code."""
    quiet_libraries()
    result = ASRDogeBenchmark(config).run_full_benchmark()
    console = Console()
    console.print(benchmark_table({config.checkpoint_dir: result}))
    for speaker, scores in result.accuracy_by_speaker.items():
        console.print(f"  speaker {speaker}: WER {100 * scores.wer:.2f} %, {scores.num_samples} utterances")
    unreadable = [sample for sample in result.samples if sample.error]
    for sample in unreadable:
        console.print(f"  counted as empty: {sample.error}", markup=False)
    console.print(f"report: {result.report_path}", soft_wrap=True, markup=False)
    return 0
