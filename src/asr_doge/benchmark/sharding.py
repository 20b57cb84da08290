"""Measure a big test set in parts, by independent processes.

Promises: the joined reports of all parts (`asr_doge.data.sharding`) equal the report of the whole, with utterances in
the same order. Reports that do not belong together are refused.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from asr_doge.benchmark.accuracy import check_readable
from asr_doge.benchmark.results import BenchmarkResult, RecogniserResult, Throughput
from asr_doge.data.sharding import parse_shard
from asr_doge.errors import DataError

_OWN_SETTINGS = {"shard", "device", "output_dir", "merge", "batch_size", "batch_sizes", "hotwords"}
"""Settings in which the parts of one benchmark may differ. (The fingerprint has the hotwords, so their file may.)"""


def merge_results(parts: Sequence[BenchmarkResult], report_path: Path) -> BenchmarkResult:
    """Join the results of all parts; speed and memory are those of the first.

    Raises:
        DataError: a part is missing, a duplicate, or of another benchmark; or no sample of any can be read.
    """
    ordered = _in_order(parts)
    first = ordered[0]
    for part in ordered[1:]:
        _check_same(first, part)
    check_readable([sample for part in ordered for sample in part.samples])
    peers = [
        replace(peer, **_joined([part.peers[index] for part in ordered])) for index, peer in enumerate(first.peers)
    ]
    config = dict(first.config) | {"shard": None}
    return replace(first, **_joined(ordered), peers=peers, config=config, report_path=report_path)


def _in_order(parts: Sequence[BenchmarkResult]) -> list[BenchmarkResult]:
    by_index: dict[int, BenchmarkResult] = {}
    counts = set()
    for part in parts:
        if part.config["shard"] is None:
            raise DataError(f"{part.report_path} is the report of a whole: --merge takes reports of --shard")
        shard = parse_shard(part.config["shard"])
        if shard.index in by_index:
            raise DataError(f"{part.report_path} and {by_index[shard.index].report_path} are both of shard {shard}")
        by_index[shard.index] = part
        counts.add(shard.count)
    if len(counts) != 1:
        raise DataError(f"these reports are of {' and '.join(map(str, sorted(counts)))} parts: merge those of one set")
    (count,) = counts
    missing = [str(index) for index in range(1, count + 1) if index not in by_index]
    if missing:
        raise DataError(f"the report of shard {', '.join(missing)} of {count} is missing: give all of them to --merge")
    return [by_index[index] for index in range(1, count + 1)]


def _check_same(first: BenchmarkResult, other: BenchmarkResult) -> None:
    different = [
        name for name, value in first.config.items() if name not in _OWN_SETTINGS and other.config.get(name) != value
    ]
    if first.model["fingerprint"] != other.model["fingerprint"]:
        different.append("the model's weights, prompt or hotwords")
    if [peer.version for peer in first.peers] != [peer.version for peer in other.peers]:
        different.append("peers")
    if different:
        raise DataError(
            f"{first.report_path} and {other.report_path} are not of one benchmark:"
            f" they differ in {', '.join(different)}"
        )


def _joined(parts: Sequence[RecogniserResult]) -> dict[str, Any]:
    """Samples in the order of the whole, and the total time of all parts."""
    count = len(parts)
    total = sum(len(part.samples) for part in parts)
    return {
        "samples": [parts[index % count].samples[index // count] for index in range(total)],
        "throughput": Throughput(
            sum(part.throughput.audio_seconds for part in parts), sum(part.throughput.seconds for part in parts)
        ),
    }
