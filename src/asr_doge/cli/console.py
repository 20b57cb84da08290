"""What several verbs print alike."""

import os
from collections.abc import Callable, Mapping

from rich.table import Table
from rich.text import Text

from asr_doge.benchmark.benchmark import BenchmarkResult


def quiet_libraries() -> None:
    """Leave the terminal to our own progress bars and messages, and to those of downloads."""
    from huggingface_hub.constants import HF_HUB_DISABLE_PROGRESS_BARS
    from huggingface_hub.utils import enable_progress_bars  # type: ignore[attr-defined] # its documented place
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()  # the hub's too, but gigabytes should not arrive in silence
    if not HF_HUB_DISABLE_PROGRESS_BARS:  # the user's own wish
        enable_progress_bars()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else tokenizers warns of every worker process


def benchmark_table(results: Mapping[str, BenchmarkResult]) -> Table:
    """One column of rates, speed and parameters for each named result, so that two fit the narrowest terminal."""
    table = Table()
    table.add_column("", no_wrap=True)
    for name in results:
        table.add_column(Text(name), justify="right", overflow="fold")
    for measure, value in _MEASURES.items():
        table.add_row(measure, *(value(result) for result in results.values()))
    return table


_MEASURES: dict[str, Callable[[BenchmarkResult], str]] = {
    "WER % ± std": lambda result: f"{100 * result.accuracy.wer:.2f} ± {100 * result.accuracy.wer_std:.1f}",
    "CER % ± std": lambda result: f"{100 * result.accuracy.cer:.2f} ± {100 * result.accuracy.cer_std:.1f}",
    "exact match %": lambda result: f"{100 * result.accuracy.perfect_match_rate:.1f}",
    "utterances": lambda result: f"{result.accuracy.num_samples:,}",
    "real-time factor": lambda result: f"{result.speed.real_time_factor:.3f}",
    "latency, ms a clip": lambda result: f"{result.speed.total_latency_ms:.0f}",
    "tokens a second": lambda result: f"{result.speed.tokens_per_second:.0f}",
    "trainable parameters": lambda result: f"{result.parameters['trainable']:,.0f}",
    "their share %": lambda result: f"{100 * result.parameters['trainable_share']:.2f}",
}
