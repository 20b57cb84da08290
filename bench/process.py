"""What `asr-doge process` saves where a header, or the last frame of a FLAC file, tells how long a recording is.

Example:
    python bench/process.py --clips 5000 --format flac

Promises: makes its own clips (noise under an envelope, as long as LibriSpeech's), processes them as the command does,
then with `--verify`, in turns within one run, and prints the ratio. Seconds are of processor time, so that other work
does not count. Whatever else both do (listing, normalizing, writing) counts on both sides. The clips stay in the page
cache, so that disks are not measured.
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
        plain = ProcessConfig(Path(folder) / "corpus", Path(folder) / "out", "folder", "all", "", "")
        fastest = {"plain": float("inf"), "--verify": float("inf")}
        for _ in range(flags.runs):
            for name, config in (("plain", plain), ("--verify", replace(plain, verify=True))):
                start = time.process_time()
                report = process_corpus(config)
                elapsed = time.process_time() - start
                assert report.splits[0].kept == flags.clips
                fastest[name] = min(fastest[name], elapsed)
                print(f"{name}: {elapsed:.2f} s")
        print(f"ratio: {fastest['--verify'] / fastest['plain']:.1f}")


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
