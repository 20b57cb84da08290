"""What the engines of `asr-doge transcribe --engine …` cost: rows a second, Ray against processes, memory of the list.

Promises: recordings are made on the spot, `--seconds` of noise each. The engines do the same job in turn, `--repeats`
times each: processes of their own (`--shard 1/n`), and Ray with as many workers on this machine. Without `--model` a
worker decodes and counts samples, so that the rate is the ceiling of lists, decoding processes, commits and Ray; with
it, it transcribes. Times are from the first worker's start of its first shard to the last commit, the least of the
repeats, since other work only adds to them; the overhead is that of Ray over as many processes. The whole run also
loads the model and starts Ray. Memory is what `list_items` and the digest of a manifest take.

    python bench/ray_scale.py --recordings 1024 --workers 1 2
    python bench/ray_scale.py --recordings 512 --seconds 3 --model nano --workers 1 2
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from asr_doge.audio.resampling import SAMPLE_RATE
from asr_doge.inference.output import Result
from asr_doge.inference.results import Transcription
from asr_doge.scaling.configuration import TranscribeJobConfig
from asr_doge.scaling.items import Item
from asr_doge.scaling.jobs import run_transcribe_job
from asr_doge.scaling.shard_worker import ShardWorker

SHARD_SIZE = 16


class CountingWorker(ShardWorker):
    """Decodes, and counts samples."""

    def results(self, items: Sequence[Item]) -> Iterator[Result]:
        """The number of samples of each recording."""
        for reading in self.read_ahead(items):
            count = sum(len(block) for block in reading.blocks(lambda note: None))
            yield Transcription(str(count), count / SAMPLE_RATE)


def run_job(config: TranscribeJobConfig, model: str | None) -> None:
    """Run a job, with a model or without."""
    if model is None:
        run_transcribe_job(config, CountingWorker)
    else:
        run_transcribe_job(config)


def settings(folder: Path, output: Path, model: str | None, **others: Any) -> TranscribeJobConfig:
    """Of the same job on any engine."""
    return TranscribeJobConfig(
        files=[str(folder)], output_dir=str(output), model=model or "none", shard_size=SHARD_SIZE, decoders=1, **others
    )


def timed(folder: Path, output: Path, model: str | None, engine: str, workers: int) -> dict[str, float]:
    """Run the job on an engine; seconds of the whole run, and since its first shard was begun."""
    begin = time.time()
    if engine == "ray":
        run_job(settings(folder, output, model, engine="ray", ray_address="local", workers=str(workers)), model)
    else:
        command = [sys.executable, __file__, "--folder", str(folder), "--output_dir", str(output)]
        command += ["--model", model] if model else []
        parts = [subprocess.Popen([*command, "--part", f"{part}/{workers}"]) for part in range(1, workers + 1)]
        codes = [part.wait() for part in parts]
        if any(codes):
            raise SystemExit(f"{engine} failed")
    end = time.time()
    markers = {path: json.loads(path.read_text()) for path in output.glob("*.done.json")}
    last = max(path.stat().st_mtime for path in markers)
    first = min(path.stat().st_mtime - marker["work_seconds"] for path, marker in markers.items())
    rows = sum(marker["transcribed"] for marker in markers.values())
    return {
        "rows": rows,
        "whole_run_seconds": end - begin,
        "seconds": last - first,
        "rows_a_second": rows / (last - first),
    }


def compared(folder: Path, output: Path, model: str | None, workers: int, repeats: int) -> dict[str, Any]:
    """The fastest run of each engine, and by how much Ray's is slower."""
    runs: dict[str, list[dict[str, float]]] = {"processes": [], "ray": []}
    for repeat in range(repeats):
        for engine, found in runs.items():
            found.append(timed(folder, output / f"{engine}-{workers}-{repeat}", model, engine, workers))
    best = {engine: min(found, key=lambda run: run["seconds"]) for engine, found in runs.items()}
    overhead = best["ray"]["seconds"] / best["processes"]["seconds"] - 1
    rounded = {engine: {name: round(value, 2) for name, value in run.items()} for engine, run in best.items()}
    return rounded | {"overhead_of_ray": round(overhead, 3)}


def list_memory(counts: Sequence[int]) -> dict[int, dict[str, float]]:
    """Megabytes that a process has at most, and seconds, once it has listed a manifest of so many recordings."""
    code = (
        "import resource, sys, time; from asr_doge.scaling.items import list_items;"
        "from asr_doge.scaling.shards import source_digest; begin = time.process_time();"
        "items = list_items(sys.argv[1:]); source_digest(items);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000, time.process_time() - begin)"
    )
    found = {}
    for count in counts:
        with tempfile.NamedTemporaryFile("w", suffix=".json") as manifest:
            for number in range(count):
                manifest.write(
                    json.dumps({"audio_path": f"s3://bucket/corpus/{number:09}.flac", "duration": 12.0}) + "\n"
                )
            manifest.flush()
            out = subprocess.run(
                [sys.executable, "-c", code, manifest.name], capture_output=True, text=True, check=True
            )
        megabytes, seconds = map(float, out.stdout.split())
        found[count] = {"megabytes": round(megabytes, 1), "processor_seconds": round(seconds, 2)}
    return found


def main() -> None:
    """Measure what the flags ask for, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of workers to compare")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--model", help="a model to transcribe with; default, none")
    parser.add_argument("--memory_only", action="store_true", help="measure only the memory of the list")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--output_dir", help=argparse.SUPPRESS)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        folder, output = Path(arguments.folder), Path(arguments.output_dir)
        run_job(settings(folder, output, arguments.model, shard=arguments.part), arguments.model)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 lets whatever else runs go before its workers
    report: dict[str, Any] = {}
    if arguments.memory_only:
        report["list"] = list_memory([1_000, 10_000, 100_000])
    else:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "in"
            folder.mkdir()
            rng = np.random.default_rng(0)
            for number in range(arguments.recordings):
                noise = rng.normal(0, 0.05, round(arguments.seconds * SAMPLE_RATE))
                soundfile.write(folder / f"{number:05}.wav", noise, SAMPLE_RATE)
            for workers in arguments.workers:
                found = compared(folder, Path(temporary), arguments.model, workers, arguments.repeats)
                report[f"{workers} workers"] = found
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
