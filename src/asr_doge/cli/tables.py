"""The results of benchmarks as tables for a terminal."""

from collections.abc import Callable, Mapping

from rich.table import Table
from rich.text import Text

from asr_doge.benchmark.compare import Comparison
from asr_doge.benchmark.memory import MemoryResult
from asr_doge.benchmark.results import BenchmarkResult, RecogniserResult
from asr_doge.benchmark.speed import SpeedResult


def benchmark_table(results: Mapping[str, RecogniserResult]) -> Table:
    """One column of figures for each named result, so that two fit the narrowest terminal."""
    table = Table()
    table.add_column("", no_wrap=True)
    for name in results:
        table.add_column(Text(name), justify="right", overflow="fold")
    for measure, value in _MEASURES.items():
        cells = [value(result) for result in results.values()]
        if any(cells):
            table.add_row(measure, *cells)
    return table


def accuracy_table(result: BenchmarkResult) -> Table:
    """Accuracy by rule, by length, by language and by speaker, with intervals."""
    table = Table()
    table.add_column("", overflow="fold")
    for heading in ("utterances", "WER %", "95 %", "CER %", "exact %"):
        table.add_column(heading, justify="right", no_wrap=True)
    groups = {
        "rule": result.accuracy_by_rule,
        "length": result.accuracy_by_duration,
        "language": result.accuracy_by_language,
        "speaker": result.accuracy_by_speaker,
    }
    for group, parts in groups.items():
        for name, accuracy in parts.items():
            low, high = accuracy.wer_interval
            table.add_row(
                Text(f"{group} {name}"),
                f"{accuracy.num_samples:,}",
                f"{100 * accuracy.wer:.2f}",
                f"{100 * low:.2f} - {100 * high:.2f}",
                f"{100 * accuracy.cer:.2f}",
                f"{100 * accuracy.perfect_match_rate:.1f}",
            )
    return table


def stages_table(speed: SpeedResult, memory: MemoryResult | None) -> Table:
    """Time and peak memory of each stage, and the throughput of each batch size."""
    table = Table()
    for heading in ("", "ms", "peak MiB", "× real time"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    peaks = memory.stages if memory else {}
    for stage, milliseconds in speed.stages_ms.items():
        peak = peaks.get(stage)
        mebibytes = f"{(peak.peak_device_bytes or peak.peak_rss_bytes) / 2**20:,.0f}" if peak else ""
        table.add_row(stage.replace("_", "-"), f"{milliseconds:.2f}", mebibytes, "")
    for batch in speed.batches:
        table.add_row(f"{batch.batch_size} at once", "", "", f"{batch.rtfx:.1f}")
    return table


def comparison_table(comparison: Comparison) -> Table:
    """The change of the word error rate, with a row for each rule."""
    table = Table(title=f"{comparison.num_common:,} utterances of both")
    for heading in ("scored by", "WER % 1 → 2", "difference", "95 %", "p", "better / worse"):
        table.add_column(heading, justify="left" if heading == "scored by" else "right", no_wrap=True)
    for rule, found in comparison.by_rule.items():
        low, high = found.interval
        table.add_row(
            rule,
            f"{100 * found.wer_first:.2f} → {100 * found.wer_second:.2f}",
            f"{100 * found.difference:+.2f}",
            f"{100 * low:+.2f} - {100 * high:+.2f}",
            f"{found.p_value:.4f}",
            f"{found.better} / {found.worse}",
        )
    return table


def _of_speed(show: Callable[[SpeedResult], str]) -> Callable[[RecogniserResult], str]:
    """A measure that is empty where speed was not measured."""
    return lambda result: show(result.speed) if result.speed else ""


def _of_model(show: Callable[[BenchmarkResult], str]) -> Callable[[RecogniserResult], str]:
    """A measure that peers have not."""
    return lambda result: show(result) if isinstance(result, BenchmarkResult) else ""


def _memory(result: BenchmarkResult) -> str:
    if result.memory is None:
        return ""
    return f"{(result.memory.peak_device_bytes or result.memory.peak_rss_bytes) / 2**20:,.0f}"


_MEASURES: dict[str, Callable[[RecogniserResult], str]] = {
    "WER % ± std": lambda result: f"{100 * result.accuracy.wer:.2f} ± {100 * result.accuracy.wer_std:.1f}",
    "  sub, del, ins": lambda result: ", ".join(
        f"{count:,}" for count in (result.accuracy.substitutions, result.accuracy.deletions, result.accuracy.insertions)
    ),
    "CER % ± std": lambda result: f"{100 * result.accuracy.cer:.2f} ± {100 * result.accuracy.cer_std:.1f}",
    "exact match %": lambda result: f"{100 * result.accuracy.perfect_match_rate:.1f}",
    "utterances": lambda result: f"{result.accuracy.num_samples:,}",
    "real-time factor": _of_speed(lambda speed: f"{speed.real_time_factor:.3f}"),
    "latency, ms a clip": _of_speed(lambda speed: f"{speed.total_latency_ms:.0f}"),
    "  p50, p90, p99": _of_speed(
        lambda speed: f"{speed.latency_p50_ms:.0f}, {speed.latency_p90_ms:.0f}, {speed.latency_p99_ms:.0f}"
    ),
    "first token, ms": _of_speed(lambda speed: "" if speed.first_token_ms is None else f"{speed.first_token_ms:.0f}"),
    "tokens a second": _of_speed(lambda speed: f"{speed.tokens_per_second:.0f}" if speed.stages_ms else ""),
    "× real time, batched": lambda result: f"{result.throughput.rtfx:.1f}",
    "peak memory, MiB": _of_model(_memory),
    "trainable parameters": _of_model(lambda result: f"{result.parameters['trainable']:,.0f}"),
    "their share %": _of_model(lambda result: f"{100 * result.parameters['trainable_share']:.2f}"),
}
