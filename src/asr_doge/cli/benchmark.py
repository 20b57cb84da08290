"""`asr-doge benchmark`: accuracy, speed and memory of a checkpoint; two reports compared; shards merged."""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from asr_doge.benchmark import ASRDogeBenchmark, BenchmarkConfig
from asr_doge.benchmark.benchmark import merge_reports
from asr_doge.benchmark.compare import compare
from asr_doge.benchmark.report import read_report
from asr_doge.benchmark.results import BenchmarkResult
from asr_doge.cli.configuration import BenchmarkJobConfig
from asr_doge.cli.console import note_language
from asr_doge.cli.tables import accuracy_table, benchmark_table, comparison_table, stages_table
from asr_doge.data.manifest import manifest_path
from asr_doge.decoding.hotwords import read_hotwords
from asr_doge.errors import ConfigError
from asr_doge.scaling.configuration import EngineConfig
from asr_doge.scaling.jobs import model_digest


def run(config: BenchmarkJobConfig) -> int:
    """Run the command; returns the exit code."""
    if config.compare and config.merge:
        raise ConfigError("--compare and --merge do not go together: merge first, then compare the merged reports")
    if config.compare:
        _compare(config)
        return 0
    if config.merge:
        _show(merge_reports([Path(path) for path in config.merge], Path(config.output_dir)))
        return 0
    plain = BenchmarkConfig(**{one.name: getattr(config, one.name) for one in fields(BenchmarkConfig)})
    if config.engine == "ray":
        _show(_on_ray(plain, config))
        return 0
    try:
        benchmark = ASRDogeBenchmark(plain)
        result = benchmark.run_full_benchmark()
        note_language(benchmark.transcriber, config.checkpoint_dir)
        _show(result)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        raise
    return 0


def _on_ray(config: BenchmarkConfig, engine: EngineConfig) -> BenchmarkResult:
    """The joined report of parts that workers do, or did before the last run was stopped."""
    from asr_doge.scaling.command_parts import part_names, run_parts  # here, since Ray is an extra

    if config.shard is not None:
        raise ConfigError("--shard divides the work without a cluster: leave it or --engine ray out")
    parts = part_names(engine, len(ASRDogeBenchmark(config).load_samples()))
    folder = _parts_folder(config)
    of_part = replace(config, output_dir=str(folder))
    done = _reports(of_part, parts)
    checkpoint = config.checkpoint_dir if Path(config.checkpoint_dir).is_dir() else None
    paths = [config.data_dir, config.output_dir, config.test_manifest, config.hotwords, checkpoint]
    missing = [part for part in parts if part not in done]
    run_parts(partial(_load, of_part), engine, missing, "benchmark", paths)
    result = merge_reports(list(_reports(of_part, parts).values()), Path(config.output_dir))
    shutil.rmtree(folder)
    return result


def _parts_folder(config: BenchmarkConfig) -> Path:
    """The folder for reports of parts, until they are joined; of each benchmark, model and test set another."""
    manifest = manifest_path("test", config.data_dir, config.test_manifest)
    digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True, default=str).encode())
    digest.update(f" {version('asr-doge')} {model_digest(config.checkpoint_dir)} ".encode())
    digest.update(manifest.read_bytes())
    if config.hotwords:
        digest.update(json.dumps(read_hotwords(config.hotwords)).encode())
    return Path(config.output_dir) / f"parts-{digest.hexdigest()[:16]}"


def _reports(config: BenchmarkConfig, parts: Sequence[str]) -> dict[str, Path]:
    """The report of each part that has one."""
    wanted = [asdict(replace(config, shard=part)) for part in parts]
    reports = map(read_report, sorted(Path(config.output_dir).glob("benchmark_*.json")))
    return {report.config["shard"]: report.report_path for report in reports if report.config in wanted}


def _load(config: BenchmarkConfig) -> Callable[[str], Path]:
    benchmark = ASRDogeBenchmark(config)
    benchmark.load_models()
    return lambda part: benchmark.for_shard(part).run_full_benchmark().report_path


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
