"""Measure accuracy, speed and memory on a test set: the published Python interface and the `benchmark` command.

Promises: the model is loaded and run as by `transcribe`; every sample counts; a run reuses the transcripts of an
interrupted one; the report states machine, date, weights and versions.
It does not score, time or draw itself: see `accuracy`, `speed`, `memory`, `report` and `page`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from asr_doge.benchmark.about import describe_machine, describe_model, fingerprint
from asr_doge.benchmark.accuracy import SampleResult, check_readable
from asr_doge.benchmark.configuration import BenchmarkConfig
from asr_doge.benchmark.health import check_weights, watched_outputs
from asr_doge.benchmark.memory import measure_memory
from asr_doge.benchmark.page import write_page
from asr_doge.benchmark.peers import Peer, check_peer, load_peer, time_peer, transcribe_file
from asr_doge.benchmark.progress import Progress
from asr_doge.benchmark.report import read_report, write_report
from asr_doge.benchmark.results import BenchmarkResult, PeerResult, Throughput
from asr_doge.benchmark.sharding import merge_results
from asr_doge.benchmark.speed import (
    SPEED_CLIPS,
    SpeedResult,
    TimedRun,
    spread_over_lengths,
    summarize_speed,
    time_batches,
    time_clip,
    time_runs,
)
from asr_doge.benchmark.transcribing import Outcome, transcribe_and_score
from asr_doge.data.manifest import Sample, Utterance, as_utterances, manifest_path, read_manifest, sample_utterances
from asr_doge.data.sharding import parse_shard
from asr_doge.decoding.configuration import DecodingConfig
from asr_doge.decoding.hotwords import read_hotwords
from asr_doge.errors import ConfigError, DataError
from asr_doge.inference.loading import load_model_or_encoder
from asr_doge.inference.transcription import SourceWithOptions, Transcriber
from asr_doge.models import LoadedEncoder, LoadedModel
from asr_doge.progress import progress_bar


class ASRDogeBenchmark:
    """The published interface: `load_models()`, then `run_full_benchmark(samples)` or `benchmark_speed(path)`."""

    def __init__(self, config: BenchmarkConfig) -> None:
        _check_settings(config)
        self.config = config
        self.shard = parse_shard(config.shard)
        self._transcriber: Transcriber | None = None

    def load_models(self) -> None:
        """Load the checkpoint and the frozen parts it points to; of a CTC head's folder, or for `ctc`, no more.

        Raises:
            CheckpointError, ConfigError: as in `asr_doge.load`; also for weights that are NaN.
        """
        config = self.config
        loaded = load_model_or_encoder(
            config.checkpoint_dir, config.device, config, config.quantization, config.dtype, config.compile
        )
        check_weights(loaded, config.checkpoint_dir)
        self._transcriber = self._transcriber_of(loaded, config.batch_size)

    def for_shard(self, shard: str) -> "ASRDogeBenchmark":
        """The same benchmark of another part of the samples, with the same loaded model."""
        other = ASRDogeBenchmark(replace(self.config, shard=shard))
        other._transcriber = self.transcriber
        return other

    @property
    def transcriber(self) -> Transcriber:
        """The loaded model; loads it on first use."""
        if self._transcriber is None:
            self.load_models()
        assert self._transcriber is not None
        return self._transcriber

    def load_samples(self) -> list[Utterance]:
        """The test utterances named by the configuration; if more than `max_samples`, those of `sample_utterances`."""
        utterances = read_manifest(self._manifest)
        count = self.config.max_samples or len(utterances)
        return sample_utterances(utterances, count, self.config.sample_choice)

    def run_full_benchmark(self, samples: Sequence[Sample] | None = None) -> BenchmarkResult:
        """Measure accuracy on all samples, speed and memory on a few, and write the JSON report and its HTML page.

        For a `shard`, only its samples are transcribed, and only the first shard measures speed and memory.

        Args:
            samples: utterances, or the fields of a manifest's lines (`{"id": …, "audio_path": …, "text": …}`), all of
                which are measured; default, `load_samples()`.

        Raises:
            DataError: no samples, malformed ones, no readable one in the whole, or a report that cannot be written.
            CheckpointError, ConfigError: as in `load_models`; also for outputs that are NaN, and for a peer.
        """
        rule = self._rule() if samples is None else "chosen by the caller"
        if samples is not None and not len(samples):
            raise DataError("nothing to benchmark: no samples")
        chosen = self.shard.of(self._utterances(self.load_samples() if samples is None else samples))
        progress = self._progress()
        results, throughput = self._transcribe(chosen, progress)
        if self.shard.count == 1:  # that of several parts is seen when they are joined
            check_readable(results)
        whole = [
            replace(sample, duration=result.duration)  # the recording's own, not the manifest's
            for sample, result in zip(chosen, results, strict=True)
            if result.error is None and result.incomplete is None
        ]
        timed = spread_over_lengths(whole, SPEED_CLIPS) if self.shard.index == 1 and whole else []
        speed = self._measure_speed(timed, whole) if timed else None
        memory = measure_memory(self.transcriber, timed[-1].audio_path) if timed else None
        # Loaded only now, so that their memory does not count as ours.
        measured_peers = [self._measure_peer(name, chosen, timed) for name in self.config.peer]
        result = BenchmarkResult(
            name=self.config.checkpoint_dir,
            samples=results,
            throughput=throughput,
            speed=speed,
            memory=memory,
            seed=self.config.seed,
            which_samples=rule,
            reading=self._reading(),
            peers=[peer for peer, _ in measured_peers],
            report_path=_report_path(Path(self.config.output_dir)),
            **self._about(),
        )
        _write(result)
        for finished in (progress, *(finished for _, finished in measured_peers)):
            finished.remove()
        return result

    def transcribe_samples(self, samples: Sequence[Sample]) -> list[SampleResult]:
        """Transcribe and score; a clip that cannot be read counts as an empty hypothesis, with its error noted.

        Samples are as in `run_full_benchmark`, which reuses these texts from `output_dir` instead of transcribing
        again.
        """
        return self._transcribe(self._utterances(samples), self._progress())[0]

    def benchmark_speed(self, audio_path: str | Path) -> dict[str, float]:
        """Time one clip with batch size 1, from the file to the text.

        Returns:
            Medians over `num_speed_runs`, after the warm-up: `total_latency_ms`, `real_time_factor` (latency divided by
            the clip's length; less than 1 is faster than speech), `rtfx` (its inverse), `tokens_per_second` (of
            generated text, over the whole latency), `generation_tokens_per_second` (over the language model's passes
            only, as in the published figures), `first_token_ms`; means: `language_model_passes`, and for each stage
            `audio_ms`, `log_mel_ms`, `encoder_ms`, `adapter_ms`, `prefill_ms`, `generation_ms`, `other_ms`; also
            `latency_p90_ms`, `latency_p99_ms`, `audio_duration` (seconds), `num_runs`.

        Raises:
            AudioError: it cannot be read.
        """
        runs = self._time_clip(audio_path)
        speed = summarize_speed([runs], self.config.num_warmup_runs)
        return {
            "total_latency_ms": speed.total_latency_ms,
            "real_time_factor": speed.real_time_factor,
            "rtfx": 1 / speed.real_time_factor,
            "tokens_per_second": speed.tokens_per_second,
            "generation_tokens_per_second": speed.generation_tokens_per_second or 0.0,  # 0: nothing was generated
            # Digital silence never reaches the language model: its text is ready at the end.
            "first_token_ms": speed.total_latency_ms if speed.first_token_ms is None else speed.first_token_ms,
            "language_model_passes": speed.language_model_passes,
            **{f"{stage}_ms": value for stage, value in speed.stages_ms.items()},
            "latency_p90_ms": speed.latency_p90_ms,
            "latency_p99_ms": speed.latency_p99_ms,
            "audio_duration": runs[0].duration,
            "num_runs": float(self.config.num_speed_runs),
        }

    def _transcriber_of(self, loaded: LoadedModel | LoadedEncoder, batch_size: int) -> Transcriber:
        return Transcriber(loaded, batch_size, self.config, self.config.language)

    @property
    def _manifest(self) -> Path:
        return manifest_path("test", self.config.data_dir, self.config.test_manifest)

    def _utterances(self, samples: Sequence[Sample]) -> list[Utterance]:
        """Samples of any kind as utterances; those without language get the configuration's."""
        utterances = as_utterances(samples, self._manifest.parent)
        return [replace(sample, language=sample.language or self.config.language) for sample in utterances]

    def _rule(self) -> str:
        if not self.config.max_samples:
            return "all"
        if self.config.sample_choice == "first":
            return f"the first {self.config.max_samples} of the manifest"
        return f"at most {self.config.max_samples}, those whose ids have the smallest SHA-256"

    def _reading(self) -> str:
        """How recordings are read: cut or whole, and with which guards."""
        guards = [name for name in ("silence", "length", "loops") if getattr(self.config, f"guard_{name}")]
        cut = "cut at pauses" if self.config.cut_at_pauses else "whole; cut at pauses where they are longer than"
        limit = "" if self.config.cut_at_pauses else f" {self.transcriber.max_seconds:.2f} s"
        return f"recordings {cut}{limit}; guards {', '.join(guards) or 'off'}"

    def _progress(self, peer: Peer | None = None) -> Progress:
        """Results of an earlier run that would be the same now."""
        if peer is not None:
            recogniser = f"{peer.name} {peer.version}"
        else:
            names = [field.name for field in fields(DecodingConfig) if field.name != "hotwords"]
            decoding = {name: getattr(self.config, name) for name in names}
            recogniser = f"{self._fingerprint()} {self.config.dtype} {self.config.quantization} {decoding}"
        # Texts could be reused for another selection, but not times: one sample has the time of its whole batch.
        part = f"{self.shard} of {self.config.max_samples} {self.config.sample_choice}"
        return Progress(Path(self.config.output_dir), recogniser, part)

    def _transcribe(self, samples: Sequence[Utterance], progress: Progress) -> tuple[list[SampleResult], Throughput]:
        """Our own transcripts, scored. NaN stops it before a text that results from it is stored."""
        with watched_outputs(self.transcriber.recognizer.loaded, self.config.checkpoint_dir) as outputs:

            def transcribe_each(pending: Iterable[Utterance]) -> Iterator[Outcome]:
                sources = (SourceWithOptions(sample.audio_path, sample.language) for sample in pending)
                for outcome in self.transcriber.transcribe_each(sources):
                    outputs.check()
                    yield outcome

            return transcribe_and_score(samples, transcribe_each, progress, self.config.checkpoint_dir)

    def _measure_peer(
        self, name: str, samples: Sequence[Utterance], timed: Sequence[Utterance]
    ) -> tuple[PeerResult, Progress]:
        """A peer's transcripts, scored, and its speed."""
        peer = load_peer(name, self.transcriber.recognizer.loaded.device)

        def transcribe_each(pending: Iterable[Utterance]) -> Iterator[Outcome]:
            return (transcribe_file(peer, sample.audio_path) for sample in pending)

        progress = self._progress(peer)
        results, throughput = transcribe_and_score(samples, transcribe_each, progress, peer.name)
        readable = {result.id for result in results if result.error is None}
        clips = [
            time_runs(partial(time_peer, peer, sample.audio_path), *self._runs())
            for sample in progress_bar(
                [sample for sample in timed if sample.id in readable], desc=f"timing {peer.name}", unit="utt"
            )
        ]
        result = PeerResult(
            name=peer.name,
            version=peer.version,
            samples=results,
            throughput=throughput,
            speed=summarize_speed(clips, self.config.num_warmup_runs) if clips else None,
            seed=self.config.seed,
        )
        return result, progress

    def _measure_speed(self, timed: Sequence[Utterance], readable: Sequence[Utterance]) -> SpeedResult:
        clips = [self._time_clip(sample.audio_path) for sample in progress_bar(timed, desc="timing", unit="utt")]
        batches = time_batches(
            partial(self._transcriber_of, self.transcriber.recognizer.loaded), readable, self.config.batch_sizes
        )
        return summarize_speed(clips, self.config.num_warmup_runs, batches)

    def _time_clip(self, path: str | Path) -> list[TimedRun]:
        return time_runs(partial(time_clip, self.transcriber, path), *self._runs())

    def _runs(self) -> tuple[int, int]:
        return self.config.num_speed_runs, self.config.num_warmup_runs

    def _fingerprint(self) -> str:
        """Digest of model and hotwords; of the words themselves, since their file may be edited."""
        hotwords = read_hotwords(self.config.hotwords) if self.config.hotwords else ()
        return fingerprint(self.transcriber.recognizer.loaded, self.config.checkpoint_dir, hotwords)

    def _about(self) -> dict[str, Any]:
        """Model, settings, machine and date of the measurement."""
        loaded = self.transcriber.recognizer.loaded
        counts = loaded.count_parameters()
        return {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "config": asdict(self.config),
            "machine": describe_machine(loaded.device),
            "model": describe_model(loaded) | {"fingerprint": self._fingerprint()},
            "parameters": asdict(counts) | {"total": counts.total, "trainable_share": counts.trainable_share},
        }


def merge_reports(paths: Sequence[Path], output_dir: Path) -> BenchmarkResult:
    """Join the reports of all shards, and write the combined report and its page.

    Raises:
        DataError: a report is missing, damaged, a duplicate, or of another benchmark; or the new one cannot be written.
    """
    result = merge_results([read_report(path) for path in paths], _report_path(output_dir))
    _write(result)
    return result


def _write(result: BenchmarkResult) -> None:
    write_report(result)
    write_page(result)


def _report_path(folder: Path) -> Path:
    """A unique name for each report."""
    return folder / f"benchmark_{datetime.now():%Y%m%d_%H%M%S_%f}.json"


def _check_settings(config: BenchmarkConfig) -> None:
    least = {"num_speed_runs": 1, "batch_size": 1, "max_samples": 0, "num_warmup_runs": 0, "num_worst": 0}
    values = [(name, getattr(config, name), bound) for name, bound in least.items()]
    for name, value, bound in [*values, *(("batch_sizes", size, 1) for size in config.batch_sizes)]:
        if value < bound:
            raise ConfigError(f"--{name} {value} cannot be used: it must be at least {bound}")
    config.check()
    for peer in config.peer:
        check_peer(peer)
