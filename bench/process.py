"""How much faster is `asr-doge process`, which reads headers, than decoding every recording to its end?

Example:
    python bench/process.py --clips 5000 --format flac

Promises: makes its own clips (noise under an envelope, as long as LibriSpeech's), processes them as the command does,
then with `--verify`, in turns within one run, and prints the ratio. Whatever else both do (listing, normalizing,
writing) counts on both sides. The clips stay in the page cache, so that disks are not measured.
"""

import argparse
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile

from asr_doge.audio.resampling import SAMPLE_RATE
from asr_doge.data.configuration import ProcessConfig
from asr_doge.data.processing import process_corpus

DISTINCT = 40
"""Recordings that are encoded; the others are copies, since encoding thousands would take longer than measuring."""


def main() -> None:
    """Make clips, measure, and print one line for each run and one for the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=5000, help="number of clips (default: 5000)")
    parser.add_argument("--format", default="flac", choices=["flac", "wav", "ogg", "mp3"], help="their format")
    parser.add_argument("--runs", type=int, default=3, help="runs of each kind; the fastest counts (default: 3)")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = make_clips(Path(folder) / "corpus", flags.clips, flags.format)
        print(f"{flags.clips} clips of {seconds / flags.clips:.1f} s on average, {flags.format}")
        headers = ProcessConfig(Path(folder) / "corpus", Path(folder) / "out", "folder", "all", "", "")
        fastest = {"headers": float("inf"), "decoding": float("inf")}
        for _ in range(flags.runs):
            for name, config in (("headers", headers), ("decoding", replace(headers, verify=True))):
                start = time.perf_counter()
                report = process_corpus(config)
                elapsed = time.perf_counter() - start
                assert report.splits[0].kept == flags.clips
                fastest[name] = min(fastest[name], elapsed)
                print(f"{name}: {elapsed:.2f} s")
        print(f"ratio: {fastest['decoding'] / fastest['headers']:.1f}")


def make_clips(folder: Path, count: int, format_: str) -> float:
    """Write clips with transcripts beside them; returns their length together, in seconds."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    lengths = rng.uniform(2, 18, DISTINCT)
    for number in range(count):
        path = folder / f"{number:05d}.{format_}"
        if number < DISTINCT:
            samples = round(lengths[number] * SAMPLE_RATE)
            envelope = 0.05 * np.abs(np.sin(np.linspace(0, 4 * lengths[number], samples)))
            soundfile.write(path, (envelope * rng.normal(size=samples)).astype(np.float32), SAMPLE_RATE)
        else:
            shutil.copyfile(folder / f"{number % DISTINCT:05d}.{format_}", path)
        path.with_suffix(".txt").write_text(f"clip number {number}")
    return float(sum(lengths[number % DISTINCT] for number in range(count)))


if __name__ == "__main__":
    main()
