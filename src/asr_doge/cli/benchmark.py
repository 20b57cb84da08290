"""`asr-doge benchmark`: accuracy, speed and memory of a checkpoint; two reports compared; shards merged."""

import sys
from pathlib import Path

from rich.console import Console

from asr_doge.benchmark import ASRDogeBenchmark, BenchmarkConfig
from asr_doge.benchmark.benchmark import merge_reports
from asr_doge.benchmark.compare import compare
from asr_doge.benchmark.report import read_report
from asr_doge.benchmark.results import BenchmarkResult
from asr_doge.cli.console import note_language, quiet_libraries
from asr_doge.cli.tables import accuracy_table, benchmark_table, comparison_table, stages_table
from asr_doge.errors import ConfigError


def run(config: BenchmarkConfig) -> int:
    """Run the verb; returns the exit code."""
    if config.compare and config.merge:
        raise ConfigError("--compare and --merge do not go together: merge first, then compare the merged reports")
    quiet_libraries()
    if config.compare:
        _compare(config)
        return 0
    if config.merge:
        _show(merge_reports([Path(path) for path in config.merge], Path(config.output_dir)))
        return 0
    try:
        benchmark = ASRDogeBenchmark(config)
        result = benchmark.run_full_benchmark()
        note_language(benchmark.transcriber, config.checkpoint_dir)
        _show(result)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        raise
    return 0


def _compare(config: BenchmarkConfig) -> None:
    if len(config.compare) != 2:
        raise ConfigError(f"--compare takes two reports, the baseline first; got {len(config.compare)}")
    first, second = (read_report(Path(path)) for path in config.compare)
    console = Console()
    console.print(benchmark_table({f"{number}. {side.name}": side for number, side in enumerate((first, second), 1)}))
    comparison = compare(first, second, config.seed)
    console.print(comparison_table(comparison))
    if comparison.num_left_out:
        console.print(f"  {comparison.num_left_out} utterances are in one report only, and left out")


def _show(result: BenchmarkResult) -> None:
    console = Console()
    peers = {peer.name: peer for peer in result.peers}
    console.print(benchmark_table({result.name: result, **peers}))
    console.print(accuracy_table(result))
    if result.speed is not None:
        console.print(stages_table(result.speed, result.memory))
    for sample in result.samples:
        if sample.error:
            console.print(f"  counted as empty: {sample.error}", markup=False)
        if sample.incomplete:
            console.print(f"  scored by what is there of it: {sample.incomplete}", markup=False)
    if result.name == BenchmarkConfig.checkpoint_dir:
        console.print("  this was nano, which knows digit strings only; name your own model with --checkpoint_dir")
    console.print(f"page:   {result.page_path}", soft_wrap=True, markup=False)
    console.print(f"report: {result.report_path}", soft_wrap=True, markup=False)
