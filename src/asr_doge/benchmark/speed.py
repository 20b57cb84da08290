"""Measure how fast a model transcribes: latency by clip and by stage, and throughput by batch size.

Promises: every timed run goes from the file on disk to the text, through the calls that `transcribe` makes; on an
accelerator the clock waits for each stage to finish; warm-up runs are not counted; percentiles are of single runs.
It does not check whether the texts are right (see `accuracy`).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import torch

from asr_doge.audio.reading import read_audio
from asr_doge.benchmark.stages import STAGES, Stage, observed
from asr_doge.data.manifest import Utterance
from asr_doge.inference.transcription import Transcriber

SPEED_CLIPS = 5
"""Number of clips whose latency is measured, spread over the range of lengths."""
SWEEP_ROUNDS = 2
"""Number of batches of the largest size on which the throughput is measured."""


@dataclass(frozen=True)
class TimedRun:
    """One clip transcribed once.

    Attributes:
        total: seconds from opening the file to the text.
        duration: seconds of audio.
        tokens: of the text, including the end-of-sequence token; for a peer, its words.
        stages: seconds in each observed stage.
        first_token: seconds until the end of the language model's first pass, if it was observed.
        passes: number of language-model passes.
    """

    total: float
    duration: float
    tokens: int
    stages: dict[Stage, float] = field(default_factory=dict)
    first_token: float | None = None
    passes: int = 0


@dataclass(frozen=True)
class BatchSpeed:
    """Throughput of several clips together.

    Attributes:
        batch_size: chunks that the model reads at once.
        num_clips: clips transcribed.
        audio_seconds, seconds: their length, and the time it took, including reading them.
        rtfx: seconds of audio per second of time.
    """

    batch_size: int
    num_clips: int
    audio_seconds: float
    seconds: float
    rtfx: float


@dataclass(frozen=True)
class SpeedResult:
    """Speed at batch size 1 over some clips, each run several times.

    Attributes:
        total_latency_ms, real_time_factor, tokens_per_second: medians over the clips of their medians; tokens over the
            whole latency.
        generation_tokens_per_second: median over all runs of tokens divided by the time in the language model, as in
            the published figures; None if it cannot be observed.
        rtfx: seconds of audio per second, all runs together.
        latency_p50_ms, latency_p90_ms, latency_p99_ms: percentiles over all runs.
        first_token_ms: median time to the first token; None if it cannot be observed.
        language_model_passes: mean over the runs; 0 if they cannot be observed.
        stages_ms: mean over all runs of each stage and of the rest (`other`); empty if they cannot be observed.
        num_clips, num_runs, num_warmup_runs: clips, timed runs of each, runs before those.
        batches: throughput by batch size.
    """

    total_latency_ms: float
    real_time_factor: float
    tokens_per_second: float
    rtfx: float
    latency_p50_ms: float
    latency_p90_ms: float
    latency_p99_ms: float
    first_token_ms: float | None
    language_model_passes: float
    stages_ms: dict[str, float]
    num_clips: int
    num_runs: int
    num_warmup_runs: int
    batches: tuple[BatchSpeed, ...] = ()
    generation_tokens_per_second: float | None = None


class StageClock:
    """An observer that adds up the time in each stage.

    Args:
        device: the model's; an accelerator continues after its calls return, so the clock waits for it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = self._entered = self._now()
        self.seconds: dict[Stage, float] = dict.fromkeys(STAGES, 0.0)
        self.passes = 0
        self.first_token: float | None = None

    def enter(self, stage: Stage) -> None:
        """Start the stage's clock."""
        self._entered = self._now()

    def leave(self, stage: Stage) -> None:
        """Stop it."""
        now = self._now()
        self.seconds[stage] += now - self._entered
        self.passes += stage in ("prefill", "generation")
        if stage == "prefill" and self.first_token is None:
            self.first_token = now - self._start

    def total(self) -> float:
        """Seconds since the clock was created."""
        return self._now() - self._start

    def _now(self) -> float:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        return time.perf_counter()


def time_clip(transcriber: Transcriber, path: str | Path) -> TimedRun:
    """Transcribe one clip with batch size 1, timing its stages.

    Raises:
        AudioError: it cannot be read.
    """
    clock = StageClock(transcriber.recognizer.loaded.device)
    with observed(transcriber.recognizer.loaded, clock):
        clock.enter("audio")
        waveform = read_audio(path, transcriber.sampling_rate)
        clock.leave("audio")
        result = transcriber.transcribe(waveform)
        total = clock.total()
    tokens = transcriber.recognizer.loaded.count_tokens(result.text)
    return TimedRun(total, result.duration, tokens, clock.seconds, clock.first_token, clock.passes)


def time_runs(time_once: Callable[[], TimedRun], runs: int, warmup_runs: int) -> list[TimedRun]:
    """Times of `runs` runs, after warm-up runs that are not counted."""
    return [time_once() for _ in range(warmup_runs + runs)][warmup_runs:]


def summarize_speed(
    clips: Sequence[Sequence[TimedRun]], warmup_runs: int, batches: Sequence[BatchSpeed] = ()
) -> SpeedResult:
    """Speed over some clips, from the runs of each."""
    runs = [run for clip in clips for run in clip]
    latencies = [1000 * run.total for run in runs]
    p50, p90, p99 = (float(value) for value in np.percentile(latencies, [50, 90, 99]))
    generated = [run.tokens / seconds for run in runs if (seconds := _seconds_of_language_model(run))]
    first_tokens = [1000 * run.first_token for run in runs if run.first_token is not None]
    return SpeedResult(
        total_latency_ms=median(1000 * median(run.total for run in clip) for clip in clips),
        real_time_factor=median(median(run.total for run in clip) / clip[0].duration for clip in clips),
        tokens_per_second=median(median(run.tokens / run.total for run in clip) for clip in clips),
        rtfx=sum(run.duration for run in runs) / sum(run.total for run in runs),
        latency_p50_ms=p50,
        latency_p90_ms=p90,
        latency_p99_ms=p99,
        first_token_ms=median(first_tokens) if first_tokens else None,
        language_model_passes=sum(run.passes for run in runs) / len(runs),
        stages_ms=_mean_stages(runs),
        num_clips=len(clips),
        num_runs=len(clips[0]),
        num_warmup_runs=warmup_runs,
        batches=tuple(batches),
        generation_tokens_per_second=median(generated) if generated else None,
    )


def time_batches(
    transcriber_of: Callable[[int], Transcriber], samples: Sequence[Utterance], sizes: Sequence[int]
) -> list[BatchSpeed]:
    """Throughput at each batch size, over the same clips.

    Args:
        transcriber_of: gives a transcriber of a batch size.
        samples: clips that can be read; if there are many, some spread over the range of lengths are taken.
        sizes: batch sizes.
    """
    chosen = spread_over_lengths(samples, SWEEP_ROUNDS * max(sizes, default=0))
    return [_time_batch(transcriber_of(size), chosen) for size in sizes]


def spread_over_lengths(samples: Sequence[Utterance], count: int) -> list[Utterance]:
    """At most `count` utterances at even steps from the shortest to the longest."""
    by_length = sorted(samples, key=lambda sample: sample.duration)
    count = min(count, len(by_length))
    return [by_length[round((index + 0.5) * len(by_length) / count - 0.5)] for index in range(count)]


def _time_batch(transcriber: Transcriber, samples: Sequence[Utterance]) -> BatchSpeed:
    clock = StageClock(transcriber.recognizer.loaded.device)
    results = transcriber.transcribe([sample.audio_path for sample in samples])
    seconds = clock.total()
    audio_seconds = sum(result.duration for result in results)
    return BatchSpeed(transcriber.batch_size, len(samples), audio_seconds, seconds, audio_seconds / seconds)


def _seconds_of_language_model(run: TimedRun) -> float:
    return run.stages.get("prefill", 0.0) + run.stages.get("generation", 0.0)


def _mean_stages(runs: Sequence[TimedRun]) -> dict[str, float]:
    """Milliseconds of each stage, and of the rest, in the order of the flow."""
    watched = [run for run in runs if run.stages]
    if not watched:
        return {}
    means: dict[str, float] = {
        stage: 1000 * sum(run.stages[stage] for run in watched) / len(watched) for stage in STAGES
    }
    means["other"] = 1000 * sum(run.total for run in watched) / len(watched) - sum(means.values())
    return means
