"""Write the HTML page of a benchmark: one file that can be sent to someone.

Promises: everything is in the file (styles, charts, and the recordings of the worst utterances if requested), nothing
is fetched and no script runs; it has a light and a dark form and prints. If a recording is gone, only its player is
missing. It does not measure or score: it shows a result.
"""

import base64
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import soundfile
from jinja2 import Environment, PackageLoader, StrictUndefined

from asr_doge.audio.reading import read_audio
from asr_doge.audio.resampling import SAMPLE_RATE
from asr_doge.benchmark.accuracy import (
    LEADERBOARD_RULE,
    PUBLISHED_RULE,
    Accuracy,
    SampleResult,
    aligned_words,
    worst_utterances,
)
from asr_doge.benchmark.charts import Bar, Column, bar_chart, column_chart
from asr_doge.benchmark.results import BenchmarkResult
from asr_doge.data.atomic_writing import write_atomically
from asr_doge.errors import AudioError

RULE_NAMES = {PUBLISHED_RULE: "clean", LEADERBOARD_RULE: "leaderboard"}
LONGEST_PLAYED_SECONDS = 30.0
MOST_SPEAKERS = 20
"""Maximum number of speakers in the table; if there are more, the worst are shown."""


def write_page(result: BenchmarkResult) -> None:
    """Write the page beside the JSON report.

    Raises:
        DataError: it cannot be written.
    """
    write_atomically(result.page_path, render_page(result).encode("utf-8", "backslashreplace"))


def render_page(result: BenchmarkResult) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=PackageLoader("asr_doge.benchmark"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=lambda share: f"{100 * share:.2f}", mib=lambda size: f"{size / 2**20:,.0f} MiB")
    return environment.get_template("page.html").render(
        result=result,
        rules=RULE_NAMES,
        recognisers=[result, *result.peers],
        charts=dict(_charts(result)),
        speakers=sorted(result.accuracy_by_speaker.items(), key=lambda group: -group[1].wer)[:MOST_SPEAKERS],
        worst=[_worst(sample, result.config["embed_audio"]) for sample in _worst_samples(result)],
        unreadable=[sample for sample in result.samples if sample.error],
        incomplete=[sample for sample in result.samples if sample.incomplete],
    )


def _charts(result: BenchmarkResult) -> Iterator[tuple[str, Any]]:
    """Title and drawing of each chart for which there is data."""
    yield "Word error rate by length", _rate_chart(result.accuracy_by_duration, "WER by length of the recording")
    if result.speed and result.speed.stages_ms:
        yield "Where the time goes", _waterfall(result.speed.stages_ms)
    if result.speed and result.speed.batches:
        bars = [
            Bar(f"{batch.batch_size} at once", 0.0, batch.rtfx, f"{batch.rtfx:.1f} ×") for batch in result.speed.batches
        ]
        yield "Throughput, × real time", bar_chart(bars, "throughput by batch size")
    if result.memory and result.memory.stages:
        peaks = {stage: peak.peak_device_bytes or peak.peak_rss_bytes for stage, peak in result.memory.stages.items()}
        bars = [Bar(_stage_name(stage), 0.0, peak, f"{peak / 2**20:,.0f} MiB") for stage, peak in peaks.items()]
        yield "Peak memory", bar_chart(bars, "peak memory by stage")
    if len(result.accuracy_by_language) > 1:
        yield "Word error rate by language", _rate_chart(result.accuracy_by_language, "WER by language")


def _rate_chart(groups: Mapping[str, Accuracy], title: str) -> Any:
    columns = [
        Column(
            name,
            100 * group.wer,
            100 * group.wer_interval[0],
            100 * group.wer_interval[1],
            f"n={group.num_samples:,}",
        )
        for name, group in groups.items()
    ]
    return column_chart(columns, "%", title)


def _waterfall(stages_ms: Mapping[str, float]) -> Any:
    bars, start = [], 0.0
    for stage, milliseconds in stages_ms.items():
        bars.append(Bar(_stage_name(stage), start, milliseconds, f"{milliseconds:.2f} ms"))
        start += milliseconds
    return bar_chart(bars, "mean time of each stage, one after the other")


def _stage_name(stage: str) -> str:
    return {"log_mel": "log-mel", "audio": "audio file"}.get(stage, stage)


def _worst_samples(result: BenchmarkResult) -> list[SampleResult]:
    readable = [sample for sample in result.samples if sample.error is None]
    return worst_utterances(readable, result.config["num_worst"])


def _worst(sample: SampleResult, embed_audio: bool) -> dict[str, Any]:
    return {
        "sample": sample,
        "differences": aligned_words(sample.reference, sample.hypothesis),
        "audio": _audio_uri(Path(sample.audio_path)) if embed_audio else None,
    }


def _audio_uri(path: Path) -> str | None:
    """The first half minute of a recording as MP3, which every browser plays; None if it can no longer be read."""
    try:
        waveform = read_audio(path, SAMPLE_RATE)
    except AudioError:
        return None
    file = io.BytesIO()
    soundfile.write(file, waveform[: int(LONGEST_PLAYED_SECONDS * SAMPLE_RATE)], SAMPLE_RATE, format="MP3")
    return f"data:audio/mpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
