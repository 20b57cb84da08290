"""What Ray Data does with recordings, beside the engine of `asr-doge transcribe --engine ray`, which does without it.

Promises: recordings are made on the spot, a second of noise each, and decoded and counted by the same reader in as
many actors; `--decoders 1` as in `bench/ray_scale.py`. Rates of the two compare only if both ran on the same idle
machine. Every trial runs in a process of its own and is ended after `--limit` seconds. It prints, as JSON, rows a
second of Ray Data after its actors are there; rows that come out when one row raises, with `max_errored_blocks=-1`;
how often a row is begun that kills its actor, and whether the rest comes out; and the same where it kills the first
one only.

    python bench/ray_data.py --workers 1
"""

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from asr_doge.audio.resampling import SAMPLE_RATE
from asr_doge.scaling.item_reading import ItemReader
from asr_doge.scaling.items import Item

TRIALS = ("rate", "raises", "kills", "kills_once")
BLOCK_ROWS = 8


class Decode:
    """Counts samples; a row may be told to fail."""

    def __init__(self, notes: str) -> None:
        self._reader = ItemReader(1, 1, 2_000_000_000, None)
        self._notes = Path(notes)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row with the number of its samples."""
        kind = row["kind"]
        if kind:
            with self._notes.open("a") as file:
                file.write(f"{kind}\n")
        if kind == "raises":
            raise ValueError("a bad row")
        if kind == "kills" or (kind == "kills_once" and self._notes.read_text().count("kills") == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        blocks = self._reader.blocks(Item(row["path"]), lambda note: None, threading.Event())
        return {"path": row["path"], "samples": sum(len(block) for block in blocks)}


def run_trial(folder: Path, trial: str, workers: int) -> None:
    """Run one trial, and print rows and seconds as JSON."""
    import ray
    import ray.data

    ray.init(num_cpus=workers + 1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1 if trial == "raises" else 0
    paths = sorted(str(path) for path in folder.glob("*.wav"))
    rows = [
        {"path": path, "kind": trial if number == 5 and trial != "rate" else ""} for number, path in enumerate(paths)
    ]
    stage: Any = Decode  # for which Ray's types have a function only
    decoded = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // BLOCK_ROWS)).map(
        stage,
        fn_constructor_args=[str(folder / f"{trial}.notes")],
        compute=ray.data.ActorPoolStrategy(min_size=workers, max_size=workers),
        num_cpus=1,
    )
    found: list[str] = []
    first = last = 0.0
    for row in decoded.iter_rows():
        last = time.perf_counter()
        first = first or last
        found.append(row["path"])
    rate = (len(found) - BLOCK_ROWS) / (last - first) if last > first else 0.0  # the first block comes as a whole
    print(json.dumps({"rows": len(rows), "came_out": len(found), "distinct": len(set(found)), "rows_a_second": rate}))


def main() -> None:
    """Run the trials, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=int, default=128)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--limit", type=float, default=120.0)
    parser.add_argument("--trials", nargs="+", choices=TRIALS, default=TRIALS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        run_trial(arguments.folder, arguments.trials[0], arguments.workers)
        return
    environment = {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"} | os.environ
    with tempfile.TemporaryDirectory() as temporary:
        rng = np.random.default_rng(0)
        for number in range(arguments.recordings):
            soundfile.write(f"{temporary}/{number:05}.wav", rng.normal(0, 0.05, SAMPLE_RATE), SAMPLE_RATE)
        report: dict[str, Any] = {}
        for trial in arguments.trials:
            command = [sys.executable, __file__, "--folder", temporary, "--trials", trial]
            command += ["--workers", str(arguments.workers)]
            begin = time.perf_counter()
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
                try:
                    out = process.communicate(timeout=arguments.limit)[0]
                    lines = [line for line in out.splitlines() if line.startswith("{")]
                    report[trial] = json.loads(lines[-1]) if lines else f"it ended with {process.returncode}"
                except subprocess.TimeoutExpired:
                    process.kill()  # Ray's own processes end without it
                    report[trial] = f"ended after {arguments.limit:g} s"
            notes = Path(temporary) / f"{trial}.notes"
            report[trial] = {
                "outcome": report[trial],
                "seconds": round(time.perf_counter() - begin, 1),
                "bad_row_begun": len(notes.read_text().split()) if notes.exists() else 0,
            }
            print(f"{trial}: {report[trial]}", file=sys.stderr)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
