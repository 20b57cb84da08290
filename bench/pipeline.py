"""How much longer transcription takes than its model: reading, cutting and finding speech beside encoding and decoding.

    python bench/pipeline.py                                     # synthetic voices, 160 clips and an hour: minutes
    python bench/pipeline.py --digits_dir ./fsdd --clips 40 --long_seconds 300

Promises: `nano` transcribes digit strings from files, through the function that `asr-doge transcribe` uses, once with
each string in a file of its own and once with all in one long file. Then encoder and decoder alone work on the very
chunks that were made of them, in the same batches, in the same process: as many batches at a time as transcription has
(`model`), and one after the other, each on all threads (`one_by_one`; the same with `OMP_NUM_THREADS=1`). Printed are
the times, by the clock and of the processor (all threads, and the process that cuts), the least of some runs in turns,
and ratios of them: 1 is a pipeline that costs nothing. The start of the process that cuts counts in the first run only.
The clock's ratio says something on an idle machine only; the processor's says it anywhere, but counts as a cost what
another core does meanwhile. It does not know accuracy.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import soundfile
import torch

from asr_doge.audio import SAMPLE_RATE
from asr_doge.audio.level import normalize_level
from asr_doge.data.digits import read_fsdd, recorded_clips, split_voices, synthesized_clips
from asr_doge.decoding.recognition import Recognition
from asr_doge.inference.batches import BatchRunner
from asr_doge.inference.chunking import Chunk
from asr_doge.inference.transcription import Transcriber
from asr_doge.models import load_model

PAUSE_SECONDS = 0.5
DISTINCT = 32
"""Strings of which the files are made, over and over."""


class Noting(Transcriber):
    """Keeps the batches of chunks that it recognizes."""

    batches: list[list[Chunk]]

    def recognize_chunks(
        self,
        chunks: Sequence[Chunk],
        languages: Sequence[str | None] | None = None,
        hotwords: Sequence[Sequence[str]] | None = None,
    ) -> list[Recognition]:
        """As it always does."""
        self.batches.append(list(chunks))
        return super().recognize_chunks(chunks, languages, hotwords)

    def recognize_alone(self, parallel: int) -> None:
        """Encode and decode what was kept, and nothing else, so many batches at a time."""
        with BatchRunner(self._recognize_kept, lambda _: 0, 1, parallel) as runner:
            for _ in (*runner.submit(self.batches), *runner.drain()):
                pass

    def _recognize_kept(self, batches: Sequence[list[Chunk]]) -> list[list[Recognition]]:
        return [
            self.recognizer.recognize(
                [normalize_level(chunk.samples) for chunk in chunks],
                lambda _: True,
                timed=[bool(chunk.overlap_before or chunk.overlap_after) for chunk in chunks],
            )
            for chunks in batches
        ]


def timed(action: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of the clock, and of the processor here and in other processes that this one started."""
    processes = [psutil.Process(), *psutil.Process().children()]
    start, before = time.perf_counter(), sum(map(processor_seconds, processes))
    action()
    seconds = time.perf_counter() - start
    processes = [psutil.Process(), *psutil.Process().children()]
    return seconds, sum(map(processor_seconds, processes)) - before


def processor_seconds(process: psutil.Process) -> float:
    """Of a process that may have ended, and of those that it has waited for."""
    with suppress(psutil.NoSuchProcess):
        spent = process.cpu_times()
        return float(spent.user + spent.system + spent.children_user + spent.children_system)
    return 0.0


def measure(transcriber: Noting, name: str, paths: Sequence[Path], runs: int) -> dict[str, Any]:
    """Whole and model alone, on the same recordings, in turns."""

    def whole() -> None:
        transcriber.batches = []
        transcriber.transcribe(paths)

    ways: dict[str, Callable[[], Any]] = {
        "whole": whole,
        "model": lambda: transcriber.recognize_alone(transcriber.parallel),
        "one_by_one": lambda: transcriber.recognize_alone(1),
    }
    taken = [{way: timed(action) for way, action in ways.items()} for _ in range(runs)]
    clock = {way: min(run[way][0] for run in taken) for way in ways}
    processor = {way: min(run[way][1] for run in taken) for way in ways}
    return {
        "recordings": name,
        "threads": torch.get_num_threads(),
        "audio_seconds": round(sum(soundfile.info(path).duration for path in paths), 1),
        **{f"{way}_seconds": round(seconds, 2) for way, seconds in clock.items()},
        "ratio": round(clock["whole"] / clock["model"], 2),
        "one_by_one_ratio": round(clock["whole"] / clock["one_by_one"], 2),
        **{f"{way}_cpu_seconds": round(seconds, 2) for way, seconds in processor.items()},
        "cpu_ratio": round(processor["whole"] / processor["model"], 2),
    }


def write_recordings(
    strings: Iterable[np.ndarray[Any, Any]], folder: Path, clips: int, seconds: float
) -> tuple[list[Path], Path]:
    """Short files, and a long one."""
    held = [np.clip(string, -1, 1) for string in strings]
    short = [folder / f"{number:04d}.wav" for number in range(clips)]
    for path, samples in zip(short, cycle(held), strict=False):
        soundfile.write(path, samples, SAMPLE_RATE)
    long, left, pause = folder / "long.flac", round(seconds * SAMPLE_RATE), np.zeros(round(PAUSE_SECONDS * SAMPLE_RATE))
    with soundfile.SoundFile(long, "w", SAMPLE_RATE, 1) as file:
        for samples in cycle(held):
            part = np.concatenate([samples, pause])[:left]
            file.write(part)
            left -= len(part)
            if not left:
                return short, long
    raise AssertionError


def main() -> None:
    """Measure and print, a line of JSON for each kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits_dir", type=Path, help="Free Spoken Digit Dataset; default, synthetic voices")
    parser.add_argument("--clips", type=int, default=160)
    parser.add_argument("--long_seconds", type=float, default=3600.0)
    parser.add_argument("--runs", type=int, default=3, help="of each way, in turns; the least counts")
    options = parser.parse_args()
    if options.digits_dir:
        clips = recorded_clips(DISTINCT, read_fsdd(options.digits_dir), 0)
    else:
        clips = synthesized_clips(DISTINCT, split_voices().unseen, seed=0)
    transcriber = Noting(load_model("nano", device="cpu"))
    with tempfile.TemporaryDirectory() as folder:
        strings = (clip.waveform for clip in islice(clips, DISTINCT))
        short, long = write_recordings(strings, Path(folder), options.clips, options.long_seconds)
        transcriber.batches = []
        transcriber.transcribe(short[:2])  # warm
        print(json.dumps(measure(transcriber, f"{len(short)} short", short, options.runs)), flush=True)
        print(json.dumps(measure(transcriber, "one long", [long], options.runs)), flush=True)


if __name__ == "__main__":
    main()
