"""What offsets, hum and levels cost, and what a high-pass and a common level before the encoder give back.

Promises: digit strings of real speakers (Free Spoken Digit Dataset) are disturbed in each way, treated in each way, and
recognized without the guard of silence, so that only what the encoder hears differs; word error rates in per cent.

    python bench/levels.py --digits_dir ./fsdd --strings 6
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.signal import butter, sosfilt, sosfilt_zi

from asr_doge.audio import SAMPLE_RATE
from asr_doge.data.digits import read_fsdd, recorded_clips
from asr_doge.decoding import DecodingConfig
from asr_doge.inference.transcription import load
from asr_doge.text.scoring import word_error_rate

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


def main() -> None:
    """Run and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits_dir", type=Path, required=True, help="Free Spoken Digit Dataset")
    parser.add_argument("--model", default="nano", help="checkpoint")
    parser.add_argument("--strings", type=int, default=6, help="digit strings of each speaker")
    parser.add_argument("--seed", type=int, default=31)
    options = parser.parse_args()
    recognizer = load(options.model, device="cpu", decoding=DecodingConfig(guard_silence=False)).recognizer
    clips = list(recorded_clips(options.strings, read_fsdd(options.digits_dir, takes="test"), options.seed))
    said = [" ".join(clip.digits) for clip in clips]

    def error_rate(waveforms: Sequence[Waveform]) -> float:
        heard = [
            r.text for start in range(0, len(waveforms), 8) for r in recognizer.recognize(waveforms[start : start + 8])
        ]
        return 100 * word_error_rate(" ".join(said), " ".join(heard))

    print("| disturbance | " + " | ".join(TREATMENTS) + " |", flush=True)
    print("|---" * (len(TREATMENTS) + 1) + "|")
    for name, disturb in DISTURBANCES.items():
        disturbed = [disturb(clip.waveform) for clip in clips]
        rates = [error_rate([treat(waveform) for waveform in disturbed]) for treat in TREATMENTS.values()]
        print(f"| {name} | " + " | ".join(f"{rate:.1f}" for rate in rates) + " |", flush=True)


if __name__ == "__main__":
    main()
