"""The result of a benchmark, as plain data.

Promises: transcripts and times are stored and accuracy is computed from them, so a report read from disk gives the same
figures as when it was written.
It does not measure, read or write.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from asr_doge.benchmark.accuracy import (
    PUBLISHED_RULE,
    RULES,
    Accuracy,
    SampleResult,
    accuracy_by,
    accuracy_by_duration,
    accuracy_of,
)
from asr_doge.benchmark.memory import MemoryResult
from asr_doge.benchmark.speed import SpeedResult


@dataclass(frozen=True)
class Throughput:
    """Time to transcribe all samples that could be read.

    Attributes:
        audio_seconds, seconds: their length, and the time it took, including reading them.
    """

    audio_seconds: float
    seconds: float

    @property
    def rtfx(self) -> float:
        """Seconds of audio per second; 0 if there was nothing to transcribe."""
        return self.audio_seconds / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, kw_only=True)
class RecogniserResult:
    """One recognizer's results on the samples.

    Attributes:
        name: as the user wrote it.
        samples: every utterance, scored under the published rule.
        throughput: over all of them.
        speed: at batch size 1; None if it was not measured on this part of the samples.
        seed: of the confidence intervals.
    """

    name: str
    samples: list[SampleResult]
    throughput: Throughput
    speed: SpeedResult | None
    seed: int

    @property
    def accuracy(self) -> Accuracy:
        """Under the published rule."""
        return self.accuracy_by_rule[PUBLISHED_RULE]

    @cached_property
    def accuracy_by_rule(self) -> dict[str, Accuracy]:
        """Under the published rule and the Open ASR Leaderboard's."""
        return {rule: accuracy_of(self.samples, self.seed, rule) for rule in RULES}


@dataclass(frozen=True, kw_only=True)
class PeerResult(RecogniserResult):
    """A peer's results; `version` is that of the package and the model."""

    version: str


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult(RecogniserResult):
    """Everything one benchmark measured.

    Attributes:
        date: ISO 8601, UTC.
        config: the settings.
        machine: device, processor, memory, system, versions.
        model: what was loaded, with its fingerprint.
        parameters: by part, and the trainable ones.
        which_samples: how they were chosen.
        reading: whether recordings were read whole or cut, and which guards were on; empty in older reports.
        memory: None if `speed` is None.
        peers: other recognizers on the same samples.
        report_path: the JSON report; the HTML page is beside it.
    """

    date: str
    config: Mapping[str, Any]
    machine: Mapping[str, Any]
    model: Mapping[str, Any]
    parameters: Mapping[str, float]
    which_samples: str
    reading: str = ""
    memory: MemoryResult | None
    peers: list[PeerResult]
    report_path: Path

    @property
    def page_path(self) -> Path:
        """The HTML page."""
        return self.report_path.with_suffix(".html")

    @cached_property
    def accuracy_by_speaker(self) -> dict[str, Accuracy]:
        """Accuracy of each speaker, if speakers are known."""
        return dict(sorted(accuracy_by(self.samples, lambda sample: sample.speaker, self.seed).items()))

    @cached_property
    def accuracy_by_duration(self) -> dict[str, Accuracy]:
        """Accuracy of short and long utterances."""
        return accuracy_by_duration(self.samples, self.seed)

    @cached_property
    def accuracy_by_language(self) -> dict[str, Accuracy]:
        """Accuracy of each language, if languages are known."""
        return dict(sorted(accuracy_by(self.samples, lambda sample: sample.language, self.seed).items()))
