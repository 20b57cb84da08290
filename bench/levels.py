"""What offsets, hum and levels cost, and what a high-pass and a common level before the encoder give back.

Promises: digit strings of real speakers (Free Spoken Digit Dataset), or the recordings of a manifest, are disturbed in
each way, treated in each way, and recognized without the guard of silence, so that only what the encoder hears differs;
word error rates in percent, under the rule `clean`.

    python bench/levels.py --digits_dir ./fsdd --strings 6
    python bench/levels.py --manifest ./ljspeech/test.jsonl --clips 12 --model english --treatments none "peak 0.3"
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.signal import butter, sosfilt, sosfilt_zi

from asr_doge.audio import SAMPLE_RATE, read_audio
from asr_doge.data.digits import read_fsdd, recorded_clips
from asr_doge.data.manifest import read_manifest
from asr_doge.decoding import DecodingConfig
from asr_doge.inference.transcription import load
from asr_doge.text.normalization import normalize_for_scoring
from asr_doge.text.scoring import corpus_rate, word_edits

Waveform = NDArray[np.float32]
Change = Callable[[Waveform], Waveform]


def hum(amplitude: float, frequency: float) -> Change:
    """Add hum with its first harmonics, as a mains cable gives it."""

    def change(waveform: Waveform) -> Waveform:
        time = np.arange(len(waveform)) / SAMPLE_RATE
        waves = [np.sin(2 * np.pi * frequency * number * time + number) / number for number in (1, 2, 3)]
        return (waveform + amplitude * np.sum(waves, axis=0)).astype(np.float32)

    return change


def quiet(decibels: float, bits: int | None = 16) -> Change:
    """Scale to a peak so far below full scale, and round as a file of so many bits does."""

    def change(waveform: Waveform) -> Waveform:
        scaled = waveform * (10 ** (decibels / 20) / np.abs(waveform).max())
        steps = 2.0 ** ((bits or 32) - 1)
        return (np.round(scaled * steps) / steps).astype(np.float32) if bits else scaled.astype(np.float32)

    return change


def high_pass(frequency: float, order: int = 2) -> Change:
    """A Butterworth high-pass that starts settled on the first sample."""
    sections = butter(order, frequency, "highpass", fs=SAMPLE_RATE, output="sos")

    def change(waveform: Waveform) -> Waveform:
        state = sosfilt_zi(sections) * waveform[0]
        return np.asarray(sosfilt(sections, waveform, zi=state)[0], dtype=np.float32)

    return change


def to_peak(peak: float) -> Change:
    """Scale to a peak."""
    return lambda waveform: waveform * np.float32(peak / max(float(np.abs(waveform).max()), 1e-9))


DISTURBANCES: dict[str, Change] = {
    "none": lambda waveform: waveform,
    "offset 0.1": lambda waveform: waveform + np.float32(0.1),
    "offset 0.2": lambda waveform: waveform + np.float32(0.2),
    "offset 0.5": lambda waveform: waveform + np.float32(0.5),
    "hum 50 Hz, 0.02": hum(0.02, 50),
    "hum 50 Hz, 0.1": hum(0.1, 50),
    "hum 60 Hz, 0.3": hum(0.3, 60),
    "peak -20 dB": quiet(-20),
    "peak -30 dB": quiet(-30),
    "peak -35 dB": quiet(-35),
    "peak -40 dB": quiet(-40),
    "peak -50 dB": quiet(-50),
    "peak -60 dB": quiet(-60),
    "peak 0 dB": quiet(0),
    "peak +20 dB": quiet(20, None),
}
TREATMENTS: dict[str, Change] = {
    "none": lambda waveform: waveform,
    "40 Hz": high_pass(40),
    "80 Hz": high_pass(80),
    "peak 0.1": to_peak(0.1),
    "peak 0.3": to_peak(0.3),
    "peak 0.9": to_peak(0.9),
    "40 Hz, peak 0.3": lambda waveform: to_peak(0.3)(high_pass(40)(waveform)),
}


def digit_strings(folder: Path, count: int, seed: int) -> tuple[list[Waveform], list[str]]:
    """Strings of each speaker's test takes, and what was said."""
    clips = list(recorded_clips(count, read_fsdd(folder, takes="test"), seed))
    return [clip.waveform for clip in clips], [" ".join(clip.digits) for clip in clips]


def spread_over(manifest: Path, count: int) -> tuple[list[Waveform], list[str]]:
    """Recordings from all of a manifest, and what was said."""
    samples = list(read_manifest(manifest))
    samples = samples[:: max(len(samples) // count, 1)][:count]
    return [read_audio(sample.audio_path) for sample in samples], [sample.text for sample in samples]


def main() -> None:
    """Run and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits_dir", type=Path, help="Free Spoken Digit Dataset")
    parser.add_argument("--strings", type=int, default=6, help="digit strings of each speaker")
    parser.add_argument("--manifest", type=Path, help="recordings of any other corpus")
    parser.add_argument("--clips", type=int, default=30, help="recordings of the manifest")
    parser.add_argument("--model", default="nano", help="checkpoint")
    parser.add_argument("--disturbances", nargs="+", choices=DISTURBANCES, default=list(DISTURBANCES), metavar="NAME")
    parser.add_argument("--treatments", nargs="+", choices=TREATMENTS, default=list(TREATMENTS), metavar="NAME")
    parser.add_argument("--seed", type=int, default=31)
    options = parser.parse_args()
    if (options.manifest is None) == (options.digits_dir is None):
        parser.error("give either --digits_dir or --manifest")
    recognizer = load(options.model, device="cpu", decoding=DecodingConfig(guard_silence=False)).recognizer
    if options.manifest:
        clips, said = spread_over(options.manifest, options.clips)
    else:
        clips, said = digit_strings(options.digits_dir, options.strings, options.seed)
    said = [normalize_for_scoring(text, rule="clean") for text in said]
    print(f"{len(clips)} clips, {sum(len(text.split()) for text in said)} words\n")

    def error_rate(waveforms: Sequence[Waveform]) -> float:
        heard = [
            r.text for start in range(0, len(waveforms), 8) for r in recognizer.recognize(waveforms[start : start + 8])
        ]
        edits = [
            word_edits(one, normalize_for_scoring(two, rule="clean")) for one, two in zip(said, heard, strict=True)
        ]
        return 100 * corpus_rate(edits)

    print("| disturbance | " + " | ".join(options.treatments) + " |", flush=True)
    print("|---" * (len(options.treatments) + 1) + "|")
    for name in options.disturbances:
        disturbed = [DISTURBANCES[name](clip) for clip in clips]
        rates = [error_rate([TREATMENTS[treat](waveform) for waveform in disturbed]) for treat in options.treatments]
        print(f"| {name} | " + " | ".join(f"{rate:.1f}" for rate in rates) + " |", flush=True)


if __name__ == "__main__":
    main()
