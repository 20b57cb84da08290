"""What several verbs print alike."""

import os
from collections.abc import Mapping

from rich.table import Table

from asr_doge.benchmark import BenchmarkResult


def quiet_libraries() -> None:
    """Leave the terminal to our own progress bars and messages."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else tokenizers warns of every worker process


def benchmark_table(results: Mapping[str, BenchmarkResult]) -> Table:
    """One row of rates, speed and parameters for each named result."""
    table = Table()
    for heading in ("model", "WER %", "CER %", "exact %", "RTF", "ms/clip", "tok/s", "trainable", "share %", "utt"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for name, result in results.items():
        accuracy, speed = result.accuracy, result.speed
        table.add_row(
            name,
            f"{100 * accuracy.wer:.2f} ± {100 * accuracy.wer_std:.1f}",
            f"{100 * accuracy.cer:.2f} ± {100 * accuracy.cer_std:.1f}",
            f"{100 * accuracy.perfect_match_rate:.1f}",
            f"{speed.real_time_factor:.3f}",
            f"{speed.total_latency_ms:.0f}",
            f"{speed.tokens_per_second:.0f}",
            f"{result.parameters['trainable']:,.0f}",
            f"{100 * result.parameters['trainable_share']:.2f}",
            str(accuracy.num_samples),
        )
    return table
