"""What cutting costs: a long recording against its parts transcribed one by one, and the memory for it.

Promises: digit strings of real speakers (Free Spoken Digit Dataset) are transcribed alone, then joined into one FLAC
file with pauses between them and transcribed from it; both word error rates are against what was said. Peak memory is
that of this process over the long file, above what it had before.

    python bench/long_recordings.py --digits_dir ./fsdd --minutes 10 --pause 0.1 0.6 --output_json long.json
"""

import argparse
import json
import platform
import resource
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import soundfile
import torch

from asr_doge.audio import SAMPLE_RATE
from asr_doge.data.digits import DigitClip, read_fsdd, recorded_clips
from asr_doge.inference.results import Transcription
from asr_doge.inference.transcription import Transcriber, load
from asr_doge.text.scoring import word_edits


def write_long(path: Path, clips: list[DigitClip], repeats: int, pause: tuple[float, float], seed: int) -> None:
    """All clips one after another, several times, each followed by silence of `pause` seconds (least, most)."""
    rng = np.random.default_rng(seed)
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1) as file:
        for _ in range(repeats):
            for clip in clips:
                file.write(np.clip(clip.waveform, -1, 1))
                file.write(np.zeros(int(rng.uniform(*pause) * SAMPLE_RATE)))


def transcribe_long(transcriber: Transcriber, path: Path) -> tuple[Transcription, float, float]:
    """The transcript, the seconds it took, and the growth of peak memory in MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    result = transcriber.transcribe(path)
    seconds = time.perf_counter() - start
    return result, seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits_dir", type=Path, required=True, help="Free Spoken Digit Dataset")
    parser.add_argument("--model", default="nano", help="checkpoint")
    parser.add_argument("--strings", type=int, default=10, help="different digit strings of each speaker")
    parser.add_argument("--minutes", type=float, default=10, help="length of the long recording, about")
    parser.add_argument("--pause", type=float, nargs=2, default=(0.1, 0.6), help="silence between strings, in seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_json", type=Path, help="report to write")
    options = parser.parse_args()
    transcriber = load(options.model, device="cpu")
    clips = list(recorded_clips(options.strings, read_fsdd(options.digits_dir, takes="test"), options.seed))
    seconds_once = sum(len(clip.waveform) / SAMPLE_RATE + sum(options.pause) / 2 for clip in clips)
    repeats = max(1, round(60 * options.minutes / seconds_once))
    said = " ".join(" ".join(clip.digits) for clip in clips)
    alone = " ".join(result.text for result in transcriber.transcribe([clip.waveform for clip in clips]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.flac"
        write_long(path, clips, repeats, tuple(options.pause), options.seed)
        result, seconds, megabytes = transcribe_long(transcriber, path)
    report = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "date": date.today().isoformat(),
        "minutes": round(result.duration / 60, 1),
        "segments": len(result.segments),
        "wer_alone": round(word_edits(said, alone).rate, 4),
        "wer_long": round(word_edits(" ".join([said] * repeats), result.text).rate, 4),
        "real_time_factor": round(seconds / result.duration, 4),
        "peak_memory_growth_mb": round(megabytes),
    }
    print(json.dumps(report, indent=2))
    if options.output_json:
        options.output_json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
