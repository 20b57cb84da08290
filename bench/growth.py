"""How time and memory grow with the length of a recording, the batch and the number of recordings.

    python bench/growth.py --digits_dir ./fsdd --output_dir ./growth      # growth.json and growth.png
    python bench/growth.py --digits_dir ./fsdd --output_dir ./growth --longest 10800

Promises: `nano` transcribes digit strings of real speakers (Free Spoken Digit Dataset) from files, through the function
that `asr-doge transcribe` uses; each point is measured in a process of its own, once everything is warm. Time is the
clock's and the processor's, memory the most that the process held.
It does not know accuracy, nor the published sizes (see bench/speed.py).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import soundfile
import torch
from matplotlib import pyplot

from asr_doge.audio import SAMPLE_RATE
from asr_doge.benchmark.about import describe_machine
from asr_doge.benchmark.memory import peak_rss
from asr_doge.data.atomic_writing import write_atomically
from asr_doge.data.digits import read_fsdd, recorded_clips
from asr_doge.inference.transcription import Transcriber
from asr_doge.models import load_model

CLIPS = 32
LENGTHS = (10, 60, 600, 3600, 10800)
BATCHES = (1, 2, 4, 8, 16, 32)
CORPORA = (8, 32, 128)
Point = dict[str, float]


def write_clips(digits_dir: Path, folder: Path) -> None:
    """`CLIPS` digit strings of each speaker as WAV files."""
    for number, clip in enumerate(recorded_clips(CLIPS, read_fsdd(digits_dir), 0)):
        soundfile.write(folder / f"{number:03d}.wav", np.clip(clip.waveform, -1, 1), SAMPLE_RATE)


def write_long(folder: Path, seconds: int) -> Path:
    """The clips over and over, with pauses, up to `seconds`."""
    path = folder / f"long_{seconds}.flac"
    left = seconds * SAMPLE_RATE
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1) as file:
        clips = cycle(sorted(folder.glob("[0-9]*.wav")))
        while left:
            samples = np.concatenate([soundfile.read(next(clips))[0], np.zeros(SAMPLE_RATE // 2)])[:left]
            file.write(samples)
            left -= len(samples)
    return path


def measure(kind: str, size: int, folder: Path) -> Point:
    """One point, in this process: `size` seconds of recording, chunks a batch, or recordings."""
    transcriber = Transcriber(load_model("nano", device="cpu"), batch_size=size if kind == "batch" else 8)
    clips = sorted(folder.glob("[0-9]*.wav"))
    files = {"length": [folder / f"long_{size}.flac"], "batch": clips}.get(kind) or [
        clips[i % CLIPS] for i in range(size)
    ]
    transcriber.transcribe(clips[:2])
    before = peak_rss()
    start, processor_start = time.perf_counter(), time.process_time()
    audio_seconds = sum(result.duration for result in transcriber.transcribe(files))
    return {
        "size": size,
        "audio_seconds": audio_seconds,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - processor_start,
        "peak_rss_bytes": peak_rss(),
        "peak_rss_before_bytes": before,
    }


def points(folder: Path, longest: int) -> Iterator[tuple[str, Point]]:
    """Every point, each from a process of its own."""
    for length in (length for length in LENGTHS if length <= longest):
        write_long(folder, length)
    sizes = {"batch": BATCHES, "corpus": CORPORA, "length": [length for length in LENGTHS if length <= longest]}
    for kind in sizes:
        for size in sizes[kind]:
            command = [sys.executable, __file__, "--point", kind, str(size), "--output_dir", str(folder)]
            finished = subprocess.run(command, capture_output=True, text=True, check=False)
            if finished.returncode:
                sys.exit(f"error: {kind} {size} failed:\n{finished.stderr}")
            point: Point = json.loads(finished.stdout.splitlines()[-1])
            print(
                f"{kind:<7} {size:>6}  {point['seconds']:8.2f} s  cpu {point['cpu_seconds']:8.2f} s"
                f"  per audio second {point['cpu_seconds'] / point['audio_seconds']:.4f}"
                f"  peak {point['peak_rss_bytes'] / 1e6:.0f} MB",
                flush=True,
            )
            yield kind, point


def plot(results: dict[str, list[Point]], path: Path) -> None:
    """Processor time per second of audio, and memory, against each size."""
    mpl.use("Agg")
    labels = {"length": "recording, seconds", "batch": "batch size", "corpus": "recordings"}
    figure, axes = pyplot.subplots(
        2, len(results), figsize=(4 * len(results), 6), sharex="col", sharey="row", squeeze=False
    )
    for column, (kind, measured) in zip(axes.T, results.items(), strict=True):
        sizes = [point["size"] for point in measured]
        column[0].plot(sizes, [1000 * point["cpu_seconds"] / point["audio_seconds"] for point in measured], "o-")
        column[1].plot(sizes, [point["peak_rss_bytes"] / 1e6 for point in measured], "o-")
        column[1].set(xscale="log", xlabel=labels[kind])
        column[1].set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
        column[1].minorticks_off()
    for row, title in zip(axes, ("ms of processor per second of audio", "peak memory, MB"), strict=True):
        row[0].set(ylabel=title, ylim=(0, None))  # after everything is drawn, or it would be cut off
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--digits_dir", type=Path, help="Free Spoken Digit Dataset")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for growth.json and growth.png")
    parser.add_argument("--longest", type=int, default=3600, help="longest recording in seconds (default 3600)")
    parser.add_argument("--point", nargs=2, metavar=("KIND", "SIZE"), help="measure one point only, and print it")
    options = parser.parse_args()
    if options.point:
        kind, size = options.point
        print(json.dumps(measure(kind, int(size), options.output_dir)))
        return 0
    if options.digits_dir is None:
        parser.error("--digits_dir is needed")
    report: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(torch.device("cpu")),
    }
    results: dict[str, list[Point]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_clips(options.digits_dir, Path(folder))
        for kind, point in points(Path(folder), options.longest):
            results.setdefault(kind, []).append(point)
            # After each, for the last ones take long, and a run that is stopped is to leave what it measured.
            content = json.dumps(report | {"results": results}, indent=2) + "\n"
            write_atomically(options.output_dir / "growth.json", content.encode())
            plot(results, options.output_dir / "growth.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
