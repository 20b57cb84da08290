"""What joining overlapping chunks costs: digits said without a pause for longer than the model reads at once.

Promises: recordings of single digits (Free Spoken Digit Dataset) by one speaker follow each other without any silence
between them, so that chunks overlap; word errors are counted by kind, without guards. It uses nothing that the first
release lacks: with another version's `src` first on PYTHONPATH it measures that.

    python bench/breathless.py --digits_dir ./fsdd --recordings 4 --digits 70 --output_json breathless.json
"""

import argparse
import json
import platform
from datetime import date
from pathlib import Path

import numpy as np
import torch

from asr_doge.data.digits import DIGIT_WORDS, read_fsdd
from asr_doge.decoding.configuration import DecodingConfig
from asr_doge.inference.transcription import load
from asr_doge.text.scoring import word_edits


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits_dir", type=Path, required=True, help="Free Spoken Digit Dataset")
    parser.add_argument("--model", default="nano", help="checkpoint")
    parser.add_argument("--recordings", type=int, default=4, help="of each speaker")
    parser.add_argument("--digits", type=int, default=70, help="in each recording")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_json", type=Path, help="report to write")
    options = parser.parse_args()
    off = DecodingConfig(guard_silence=False, guard_length=False, guard_loops=False)
    transcriber = load(options.model, device="cpu", decoding=off)
    rng = np.random.default_rng(options.seed)
    edits, seconds = [], 0.0
    for _, by_digit in sorted(read_fsdd(options.digits_dir).items()):
        for _ in range(options.recordings):
            said = [DIGIT_WORDS[digit] for digit in rng.integers(0, len(DIGIT_WORDS), options.digits)]
            result = transcriber.transcribe(
                np.concatenate([by_digit[word][rng.integers(len(by_digit[word]))] for word in said])
            )
            edits.append(word_edits(" ".join(said), result.text))
            seconds += result.duration
    words = sum(edit.units for edit in edits)
    report = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "date": date.today().isoformat(),
        "recordings": len(edits),
        "minutes": round(seconds / 60, 1),
        "words": words,
        "substitutions": sum(edit.substitutions for edit in edits),
        "deletions": sum(edit.deletions for edit in edits),
        "insertions": sum(edit.insertions for edit in edits),
        "wer": round(100 * sum(edit.errors for edit in edits) / words, 2),
    }
    print(json.dumps(report, indent=2))
    if options.output_json:
        options.output_json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
