"""What silence without any sound costs within a recording that the model reads whole, and what cutting there costs.

Promises: recordings of one manifest are joined in pairs with digital silence between them, as a recorder leaves it that
was off. Each pair is read whole, as `asr-doge transcribe` reads it, and with --cut_at_pauses; word error rates in
percent. Guards are off.
The first line tells how many of the manifest's own recordings are cut for such silence, and the longest of any.

    python bench/dead_silence.py --manifest ./strings/processed/test_manifest.json --model nano --pairs 50
"""

import argparse
import platform
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from asr_doge.audio import SAMPLE_RATE, read_audio
from asr_doge.data.manifest import read_manifest
from asr_doge.decoding.configuration import DecodingConfig
from asr_doge.inference.chunking import Chunk
from asr_doge.inference.cutting import cut_into_chunks, longest_dead_seconds
from asr_doge.inference.transcription import Transcriber, load
from asr_doge.text.normalization import normalize_for_scoring
from asr_doge.text.scoring import corpus_rate, word_edits

Waveform = NDArray[np.float32]


def whole(transcriber: Transcriber, recording: Waveform) -> str:
    """The text of a recording that the model reads in one chunk, whatever silence there is."""
    return transcriber.recognize_chunks([Chunk(recording, 0.0, None, is_uncut=True)])[0].text


def error_rate(said: Sequence[str], heard: Sequence[str]) -> float:
    """Word error rate, in percent, under the benchmark's own rule."""
    pairs = zip(said, heard, strict=True)
    edits = [
        word_edits(normalize_for_scoring(one, rule="clean"), normalize_for_scoring(two, rule="clean"))
        for one, two in pairs
    ]
    return 100 * corpus_rate(edits)


def main() -> None:
    """Run and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, required=True, help="recordings and what was said")
    parser.add_argument("--model", default="nano", help="checkpoint")
    parser.add_argument("--pairs", type=int, default=50, help="of recordings, the first that are short enough")
    parser.add_argument("--longest", type=float, default=2.5, help="seconds of a recording that is paired")
    parser.add_argument("--silences", type=float, nargs="+", default=[0, 1, 2, 3], help="seconds between the two")
    options = parser.parse_args()
    off = DecodingConfig(guard_silence=False, guard_length=False, guard_loops=False)
    transcriber = load(options.model, device="cpu", decoding=off)
    cutting = Transcriber(transcriber.loaded, decoding=replace(off, cut_at_pauses=True))
    samples = list(read_manifest(options.manifest))
    recordings = [read_audio(sample.audio_path) for sample in samples]
    cut = sum(len(list(cut_into_chunks([recording], 1000.0))) > 1 for recording in recordings)
    print(f"{date.today()}, {platform.machine()}, {torch.get_num_threads()} threads, {options.model}")
    print(
        f"{cut} of {len(samples)} recordings of the manifest are cut for silence without any sound; the longest lasts"
        f" {max(longest_dead_seconds([recording]) for recording in recordings):.2f} s"
    )
    short = [index for index, sample in enumerate(samples) if sample.duration <= options.longest][: 2 * options.pairs]
    pairs = list(zip(short[::2], short[1::2], strict=False))
    said = [f"{samples[first].text} {samples[second].text}" for first, second in pairs]
    print(f"{len(pairs)} pairs, {sum(len(text.split()) for text in said)} words\n")
    print("| silence between, s | whole | as transcribed | cut at every pause |\n|---|---|---|---|")
    for seconds in options.silences:
        silence = np.zeros(round(seconds * SAMPLE_RATE), dtype=np.float32)
        joined = [np.concatenate([recordings[first], silence, recordings[second]]) for first, second in pairs]
        rates = [
            error_rate(said, [whole(transcriber, recording) for recording in joined]),
            error_rate(said, [result.text for result in transcriber.transcribe(joined)]),
            error_rate(said, [result.text for result in cutting.transcribe(joined)]),
        ]
        print(f"| {seconds:g} | " + " | ".join(f"{rate:.1f}" for rate in rates) + " |", flush=True)


if __name__ == "__main__":
    main()
