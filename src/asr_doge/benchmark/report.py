"""Write and read the JSON report.

Promises: the file is written completely or not at all, and reading it gives the result that was written.
`docs/benchmark.md` describes every field; a field keeps its meaning for a given `SCHEMA_VERSION`. A file that is not
such a report gives one error line. It does not draw (see `page`).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from asr_doge.benchmark.accuracy import Accuracy, SampleResult
from asr_doge.benchmark.memory import MemoryResult, StageMemory
from asr_doge.benchmark.results import BenchmarkResult, PeerResult, RecogniserResult, Throughput
from asr_doge.benchmark.speed import BatchSpeed, SpeedResult
from asr_doge.data.atomic_writing import write_atomically
from asr_doge.errors import DataError
from asr_doge.text.scoring import Edits

SCHEMA_VERSION = 2


def write_report(result: BenchmarkResult) -> None:
    """Write the JSON report to `result.report_path`.

    Raises:
        DataError: it cannot be written.
    """
    # As in manifests: a lone surrogate in a path has a JSON escape, but no UTF-8 form.
    content = json.dumps(report_document(result), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(result.report_path, content.encode("utf-8", "backslashreplace"))


def report_document(result: BenchmarkResult) -> dict[str, Any]:
    """The report as plain values."""
    return {
        "version": SCHEMA_VERSION,
        "date": result.date,
        "config": dict(result.config),
        "machine": dict(result.machine),
        "model": dict(result.model),
        "parameters": dict(result.parameters),
        "which_samples": result.which_samples,
        "reading": result.reading,
        **_recogniser_document(result),
        "accuracy_by_speaker": _documents(result.accuracy_by_speaker),
        "accuracy_by_duration": _documents(result.accuracy_by_duration),
        "accuracy_by_language": _documents(result.accuracy_by_language),
        "memory": asdict(result.memory) if result.memory else None,
        "peers": [_recogniser_document(peer) | {"version": peer.version} for peer in result.peers],
        "samples": [asdict(sample) for sample in result.samples],
    }


def read_report(path: Path) -> BenchmarkResult:
    """Read a report that `write_report` wrote.

    Raises:
        DataError: it is missing, not a report, or of another version.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}): give a JSON report of 'asr-doge benchmark'"
        ) from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON: give a JSON report of 'asr-doge benchmark'") from error
    found = document.get("version") if isinstance(document, dict) else None
    if found != SCHEMA_VERSION:
        what = f"a report of version {found}" if isinstance(found, int) else "no report of 'asr-doge benchmark'"
        raise DataError(f"{path} is {what}, not of version {SCHEMA_VERSION}: measure again")
    try:
        return _result(document, path)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a whole report ({error}): measure again") from error


def _recogniser_document(result: RecogniserResult) -> dict[str, Any]:
    document: dict[str, Any] = {
        "name": result.name,
        "seed": result.seed,
        "accuracy": asdict(result.accuracy),
        "accuracy_by_rule": _documents(result.accuracy_by_rule),
        "throughput": asdict(result.throughput) | {"rtfx": result.throughput.rtfx},
        "speed": asdict(result.speed) if result.speed else None,
    }
    if isinstance(result, PeerResult):
        document["samples"] = [asdict(sample) for sample in result.samples]
    return document


def _documents(groups: Mapping[str, Accuracy]) -> dict[str, Any]:
    return {name: asdict(accuracy) for name, accuracy in groups.items()}


def _result(document: dict[str, Any], path: Path) -> BenchmarkResult:
    kept = ("date", "config", "machine", "model", "parameters", "which_samples")
    memory = document["memory"]
    stages = {stage: StageMemory(**peaks) for stage, peaks in memory["stages"].items()} if memory else {}
    return BenchmarkResult(
        **_recogniser_fields(document),
        **{name: document[name] for name in kept},
        reading=document.get("reading", ""),
        memory=memory and MemoryResult(**memory | {"stages": stages}),
        peers=[PeerResult(**_recogniser_fields(peer), version=peer["version"]) for peer in document["peers"]],
        report_path=path,
    )


def _recogniser_fields(document: dict[str, Any]) -> dict[str, Any]:
    speed, throughput = document["speed"], document["throughput"]
    return {
        "name": document["name"],
        "seed": document["seed"],
        "throughput": Throughput(throughput["audio_seconds"], throughput["seconds"]),
        "speed": speed and SpeedResult(**speed | {"batches": tuple(BatchSpeed(**batch) for batch in speed["batches"])}),
        "samples": [_sample(sample) for sample in document["samples"]],
    }


def _sample(document: dict[str, Any]) -> SampleResult:
    edits = {name: Edits(**document[name]) for name in ("words", "characters")}
    return SampleResult(**document | edits)
