"""Accuracy and speed of a checkpoint on a test set: the published Python interface and the `benchmark` verb.

Promises: the model is loaded and run as `transcribe` loads and runs it; references and hypotheses go through the
published "clean" rule; every sample counts; speed is measured after a warm-up, per clip, with batch size 1; the JSON
report says on what machine, when, and with which versions.
It does not compare models or draw plots.
"""

import json
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch
from tqdm import tqdm

from asr_doge.audio.reading import read_audio
from asr_doge.benchmark.configuration import BenchmarkConfig
from asr_doge.data.atomic_writing import write_atomically
from asr_doge.data.manifest import Utterance, read_manifest, sample_utterances
from asr_doge.errors import ConfigError, DataError
from asr_doge.inference.results import FailedTranscription
from asr_doge.inference.transcription import Transcriber
from asr_doge.models import load_model
from asr_doge.text.normalization import normalize_training_text
from asr_doge.text.scoring import Scores, character_error_rate, score, word_error_rate


@dataclass(frozen=True)
class SampleResult:
    """One utterance: reference and hypothesis after the clean rule, and the rates of this pair as fractions."""

    id: str
    reference: str
    hypothesis: str
    wer: float
    cer: float
    speaker: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class SpeedResult:
    """Medians over the timed clips; see `ASRDogeBenchmark.benchmark_speed` for the units."""

    total_latency_ms: float
    real_time_factor: float
    tokens_per_second: float
    num_clips: int
    num_runs: int


@dataclass(frozen=True)
class BenchmarkResult:
    """Everything one benchmark measured."""

    accuracy: Scores
    speed: SpeedResult
    accuracy_by_speaker: dict[str, Scores]
    samples: list[SampleResult]
    parameters: dict[str, float]
    report_path: Path


class ASRDogeBenchmark:
    """The published interface: `load_models()`, then `run_full_benchmark(samples)` or `benchmark_speed(path)`."""

    SPEED_CLIPS = 5

    def __init__(self, config: BenchmarkConfig) -> None:
        if config.max_samples < 0:
            raise ConfigError(f"--max_samples {config.max_samples} cannot be used: it must not be negative")
        if config.num_speed_runs < 1:
            raise ConfigError(f"--num_speed_runs {config.num_speed_runs} cannot be used: it must be at least 1")
        self.config = config
        self._transcriber: Transcriber | None = None

    def load_models(self) -> None:
        """Load the checkpoint and the frozen parts it points to.

        Raises:
            CheckpointError, ConfigError: as in `asr_doge.models.load_model`.
        """
        config = self.config
        self._transcriber = Transcriber(
            load_model(config.checkpoint_dir, device=config.device, quantization=config.quantization)
        )

    @property
    def transcriber(self) -> Transcriber:
        """The loaded model; loads it on first use."""
        if self._transcriber is None:
            self.load_models()
        assert self._transcriber is not None
        return self._transcriber

    def load_samples(self) -> list[Utterance]:
        """The test utterances that the configuration names; of more than `max_samples`, `sample_utterances` of them."""
        manifest = Path(self.config.test_manifest or Path(self.config.data_dir) / "test_manifest.json")
        utterances = read_manifest(manifest)
        return sample_utterances(utterances, self.config.max_samples or len(utterances))

    def run_full_benchmark(self, samples: Sequence[Utterance] | None = None) -> BenchmarkResult:
        """Measure accuracy on all samples and speed on a few, and write the report.

        Args:
            samples: utterances; default, `load_samples()`.

        Raises:
            DataError: no samples, not one that can be read, or a report that cannot be written.
        """
        rule = "chosen by the caller"
        if samples is None:
            samples = self.load_samples()
            rule = f"at most {self.config.max_samples}, those whose ids have the smallest SHA-256"
            rule = rule if self.config.max_samples else "all"
        if not samples:
            raise DataError("nothing to benchmark: no samples")
        results = self.transcribe_samples(samples)
        readable = [sample for sample, result in zip(samples, results, strict=True) if result.error is None]
        if not readable:
            raise DataError(f"none of the {len(samples)} samples can be read; the first: {results[0].error}")
        counts = self.transcriber.loaded.model.count_parameters()
        result = BenchmarkResult(
            accuracy=_scores(results),
            speed=self._measure_speed(readable),
            accuracy_by_speaker=_by_speaker(results),
            samples=results,
            parameters=asdict(counts) | {"total": counts.total, "trainable_share": counts.trainable_share},
            report_path=Path(self.config.output_dir) / f"benchmark_{datetime.now():%Y%m%d_%H%M%S_%f}.json",
        )
        self._write_report(result, rule)
        return result

    def transcribe_samples(self, samples: Sequence[Utterance]) -> list[SampleResult]:
        """Transcribe and score; a clip that cannot be read counts as an empty hypothesis, with its error noted."""
        outcomes = self.transcriber.transcribe_each(sample.audio_path for sample in samples)
        results = []
        for sample, outcome in tqdm(
            zip(samples, outcomes, strict=True), total=len(samples), desc="transcribing", unit="utt", dynamic_ncols=True
        ):
            failed = isinstance(outcome, FailedTranscription)
            reference = normalize_training_text(sample.raw_text)
            hypothesis = "" if failed else normalize_training_text(outcome.text)
            results.append(
                SampleResult(
                    sample.id,
                    reference,
                    hypothesis,
                    word_error_rate(reference, hypothesis),
                    character_error_rate(reference, hypothesis),
                    sample.speaker,
                    str(outcome.error) if failed else None,
                )
            )
        return results

    def benchmark_speed(self, audio_path: str | Path) -> dict[str, float]:
        """Time one clip with batch size 1, reading it included.

        Returns:
            `total_latency_ms` (median over `num_speed_runs`, after one warm-up), `real_time_factor` (latency over the
            clip's length; less than 1 is faster than speech), `tokens_per_second` (of generated text),
            `audio_duration` (seconds), `num_runs`.
        """
        transcriber = self.transcriber
        latencies = []
        for _ in range(self.config.num_speed_runs + 1):
            start = time.perf_counter()
            waveform = read_audio(audio_path, transcriber.sampling_rate)
            result = transcriber.transcribe(waveform)
            latencies.append(time.perf_counter() - start)
        latency = statistics.median(latencies[1:])
        tokens = len(transcriber.loaded.processor.label_ids(result.text))
        return {
            "total_latency_ms": 1000 * latency,
            "real_time_factor": latency / result.duration,
            "tokens_per_second": tokens / latency,
            "audio_duration": result.duration,
            "num_runs": float(self.config.num_speed_runs),
        }

    def _measure_speed(self, samples: Sequence[Utterance]) -> SpeedResult:
        """Time a few clips spread over the range of lengths."""
        by_length = sorted(samples, key=lambda sample: sample.duration)
        count = min(self.SPEED_CLIPS, len(by_length))
        chosen = [by_length[round((index + 0.5) * len(by_length) / count - 0.5)] for index in range(count)]
        measured = [self.benchmark_speed(sample.audio_path) for sample in chosen]
        medians = {
            name: statistics.median(clip[name] for clip in measured)
            for name in ("total_latency_ms", "real_time_factor", "tokens_per_second")
        }
        return SpeedResult(**medians, num_clips=count, num_runs=self.config.num_speed_runs)

    def _write_report(self, result: BenchmarkResult, rule: str) -> None:
        report = {
            "version": 1,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "config": asdict(self.config),
            "machine": _machine(self.transcriber.loaded.model.device),
            "which_samples": rule,
            "accuracy": asdict(result.accuracy),
            "accuracy_by_speaker": {name: asdict(scores) for name, scores in result.accuracy_by_speaker.items()},
            "speed": asdict(result.speed),
            "parameters": result.parameters,
            "samples": [asdict(sample) for sample in result.samples],
        }
        # As in manifests: a lone surrogate in a path has a JSON escape, but no UTF-8 form.
        content = json.dumps(report, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace")
        write_atomically(result.report_path, content)


def _scores(results: Sequence[SampleResult]) -> Scores:
    return score([result.reference for result in results], [result.hypothesis for result in results])


def _by_speaker(results: Sequence[SampleResult]) -> dict[str, Scores]:
    speakers = sorted({result.speaker for result in results if result.speaker is not None})
    return {speaker: _scores([result for result in results if result.speaker == speaker]) for speaker in speakers}


def _machine(device: torch.device) -> dict[str, str | int]:
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "processor": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("asr-doge", "torch", "transformers")},
    }
