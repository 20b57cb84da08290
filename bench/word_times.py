"""How far word times are from the truth, on digit strings joined from single recordings at known places.

Example:
    python bench/word_times.py --digits_dir ./fsdd

Promises: the times are those of `asr-doge transcribe --timestamps word`; strings whose words are not all right are left
out and counted, since their words have no counterpart. The truth is where each recording's sound begins and ends, which
for synthesized words is exact and for human ones within the quiet at their ends.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asr_doge.audio import SAMPLE_RATE
from asr_doge.audio.synthesis import synthesize
from asr_doge.data.digits import random_digits, random_voice, read_fsdd, split_voices
from asr_doge.decoding import DecodingConfig
from asr_doge.errors import ASRDogeError
from asr_doge.inference.transcription import Transcriber
from asr_doge.models import load_model

Waveform = NDArray[np.float32]
Speak = Callable[[Sequence[str]], list[Waveform]]
"""Recordings of the words, one each."""


def main() -> int:
    """Measure every speaker and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits_dir", type=Path, required=True, help="Free Spoken Digit Dataset")
    parser.add_argument("--model", default="nano", help="checkpoint (default: nano)")
    parser.add_argument("--strings", type=int, default=60, help="of each speaker (default: 60)")
    flags = parser.parse_args()
    try:
        transcriber = Transcriber(load_model(flags.model, device="cpu"), decoding=DecodingConfig(timestamps="word"))
        speakers: dict[str, Speak] = {"espeak-ng, unheard voices": spoken_by_machine()}
        for speaker, recordings in read_fsdd(flags.digits_dir).items():
            speakers[speaker] = spoken_by(recordings)
    except ASRDogeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("| speaker | strings right | words | median ms | 90th percentile ms |\n|---|---|---|---|---|")
    for name, speak in speakers.items():
        errors, right = measure(transcriber, speak, flags.strings)
        median, high = np.percentile(1000 * errors, [50, 90])
        print(f"| {name} | {right} of {flags.strings} | {len(errors) // 2} | {median:.0f} | {high:.0f} |", flush=True)
    return 0


def spoken_by(recordings: dict[str, list[Waveform]]) -> Speak:
    """A person's own recordings, each drawn anew."""
    rng = np.random.default_rng(0)
    return lambda words: [recordings[word][rng.integers(len(recordings[word]))] for word in words]


def spoken_by_machine() -> Speak:
    """Voices that nano was not trained on, a new one for every string."""
    rng = np.random.default_rng(0)
    voices = split_voices().unseen

    def speak(words: Sequence[str]) -> list[Waveform]:
        voice = random_voice(voices, rng)
        return [synthesize(word, voice) for word in words]

    return speak


def measure(transcriber: Transcriber, speak: Speak, count: int) -> tuple[NDArray[np.float64], int]:
    """Absolute errors of all boundaries, in seconds, and how many strings were right."""
    rng = np.random.default_rng(1)
    errors: list[float] = []
    right = 0
    for _ in range(count):
        words = random_digits(rng, (2, 8))
        waveform, truth = joined([trimmed(recording) for recording in speak(words)], rng)
        found = [word for segment in transcriber.transcribe(waveform).segments for word in segment.words]
        if [word.text for word in found] == list(words):
            right += 1
            for word, (start, end) in zip(found, truth, strict=True):
                errors += [abs(word.start - start), abs(word.end - end)]
    return np.asarray(errors), right


def joined(recordings: Sequence[Waveform], rng: np.random.Generator) -> tuple[Waveform, list[tuple[float, float]]]:
    """Recordings one after another with silence around each, and where each begins and ends, in seconds."""
    parts: list[Waveform] = []
    truth, length = [], 0
    for recording in [*recordings, np.zeros(0, np.float32)]:
        silence = np.zeros(int(rng.uniform(0.05, 0.4) * SAMPLE_RATE), np.float32)
        start = length + len(silence)
        length = start + len(recording)
        truth.append((start / SAMPLE_RATE, length / SAMPLE_RATE))
        parts += [silence, recording]
    return np.concatenate(parts), truth[:-1]


def trimmed(recording: Waveform) -> Waveform:
    """Without what is more than 40 dB below the loudest at either end."""
    loud = np.flatnonzero(np.abs(recording) > 0.01 * np.abs(recording).max())
    return recording[loud[0] : loud[-1] + 1]


if __name__ == "__main__":
    sys.exit(main())
