"""What ways of reading short recordings cost: whole or cut at pauses, with guards and without.

Promises: the recordings of one manifest are transcribed in each of the four ways by one model, and scored as
`asr-doge benchmark` scores them, with the same intervals. Seconds are of processor time, so that other work on the
machine does not count.

    python bench/reading.py --manifest ./strings/processed/test_manifest.json --output_json reading.json
"""

import argparse
import json
import platform
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch

from asr_doge.benchmark.accuracy import accuracy_of, score_sample
from asr_doge.data.manifest import Utterance, read_manifest
from asr_doge.decoding.configuration import DecodingConfig
from asr_doge.inference.transcription import Transcriber, load


def measure(transcriber: Transcriber, samples: list[Utterance], cut: bool, guards: bool) -> dict[str, Any]:
    """One way of reading; rates in percent."""
    ways = DecodingConfig(cut_at_pauses=cut, guard_silence=guards, guard_length=guards, guard_loops=guards)
    start = time.process_time()
    results = Transcriber(transcriber.loaded, transcriber.batch_size, ways).transcribe(
        [sample.audio_path for sample in samples]
    )
    seconds = time.process_time() - start
    pairs = zip(samples, results, strict=True)
    accuracy = accuracy_of([score_sample(sample, result.text) for sample, result in pairs], seed=0)
    return {
        "cut_at_pauses": cut,
        "guards": guards,
        "wer": _percent(accuracy.wer),
        "wer_interval": [_percent(bound) for bound in accuracy.wer_interval],
        "cer": _percent(accuracy.cer),
        "exact": _percent(accuracy.perfect_match_rate),
        "cut": sum(len(result.segments) > 1 for result in results),
        "guarded": sum(bool(result.guards) for result in results),
        "processor_seconds": round(seconds, 1),
    }


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, required=True, help="recordings and what was said")
    parser.add_argument("--model", default="nano", help="checkpoint")
    parser.add_argument("--output_json", type=Path, help="report to write")
    options = parser.parse_args()
    transcriber = load(options.model, device="cpu")
    samples = list(read_manifest(options.manifest))
    report: dict[str, Any] = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "date": date.today().isoformat(),
        "recordings": len(samples),
        "max_seconds": round(transcriber.max_seconds, 2),
        "ways": [],
    }
    for cut in (False, True):
        for guards in (False, True):
            report["ways"].append(measure(transcriber, samples, cut, guards))
            print(json.dumps(report["ways"][-1]), flush=True)
    if options.output_json:
        options.output_json.write_text(json.dumps(report, indent=2) + "\n")


def _percent(rate: float) -> float:
    return round(100 * rate, 2)


if __name__ == "__main__":
    main()
