"""Words that are written where nobody speaks: minutes of silence, noise, tones and music-like sounds.

Example:
    python bench/guards.py --minutes 10

Promises: every line is made by the same path as `asr-doge transcribe`, with all guards and with none.
It does not know real music or rooms: its sounds are computed.
"""

import argparse
import sys

import numpy as np
from numpy.typing import NDArray

from asr_doge.audio import SAMPLE_RATE
from asr_doge.decoding import DecodingConfig
from asr_doge.inference.transcription import Transcriber
from asr_doge.models import load_model


def main() -> int:
    """Transcribe every sound and print how many words came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="checkpoint (default: nano)")
    parser.add_argument("--minutes", type=float, default=10.0, help="of each sound (default: 10)")
    flags = parser.parse_args()
    loaded = load_model(flags.model, device="cpu")
    guarded = Transcriber(loaded)
    free = Transcriber(loaded, decoding=DecodingConfig(guard_silence=False, guard_length=False, guard_loops=False))
    print(f"| {flags.minutes:g} minutes of | words | without guards |\n|---|---|---|")
    for name, sound in sounds(int(60 * flags.minutes * SAMPLE_RATE)).items():
        counts = [len(transcriber.transcribe(sound).text.split()) for transcriber in (guarded, free)]
        print(f"| {name} | {counts[0]} | {counts[1]} |", flush=True)
    return 0


def sounds(samples: int) -> dict[str, NDArray[np.float32]]:
    """Sounds `[samples]` that are no speech."""
    rng = np.random.default_rng(0)
    time = np.arange(samples) / SAMPLE_RATE
    white = rng.standard_normal(samples)
    spectrum = np.fft.rfft(white)
    pink = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1)), samples)
    tone = np.sin(2 * np.pi * 440 * time)
    notes = 2 ** (rng.integers(0, 13, samples // (SAMPLE_RATE // 2) + 1) / 12)
    pitch = np.repeat(262 * notes, SAMPLE_RATE // 2)[:samples]
    made = {
        "digital silence": np.zeros(samples),
        "white noise, -60 dB": 0.001 * white,
        "white noise, -20 dB": 0.1 * white,
        "pink noise, -20 dB": 0.1 * pink / pink.std(),
        "a tone of 440 Hz": 0.3 * tone,
        "beeps": 0.3 * tone * (time % 1 < 0.3),
        "a melody": 0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE) * np.exp(-4 * (time % 0.5)),
        "noise that swells": 0.1 * white * (1 + np.sin(4 * np.pi * time)) / 2,
    }
    return {name: sound.astype(np.float32) for name, sound in made.items()}


if __name__ == "__main__":
    sys.exit(main())
