"""How far word times are from the truth, on digit strings joined from single recordings, and spoken in one breath.

Example:
    python bench/word_times.py --digits_dir ./fsdd
    python bench/word_times.py --digits_dir ./fsdd --labels     # for the head's `first_label_delay`

Promises: the times are those of `asr-doge transcribe --timestamps word`; strings whose words are not all right are left
out and counted, since their words have no counterpart. The truth is where each recording's sound begins and ends, which
for synthesized words is exact and for human ones within the quiet at their ends; in one breath, where espeak-ng says
that a word begins, which is where the one before it ends (it counts the closure of a plosive with the plosive's word).
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asr_doge.audio import SAMPLE_RATE, add_noise
from asr_doge.audio.level import normalize_level
from asr_doge.audio.synthesis import synthesize, synthesize_timed
from asr_doge.data.digits import random_digits, random_voice, read_fsdd, split_voices
from asr_doge.decoding import DecodingConfig
from asr_doge.decoding.alignment import label_frames
from asr_doge.decoding.ctc import ctc_log_posteriors
from asr_doge.errors import ASRDogeError
from asr_doge.inference.results import Word
from asr_doge.inference.transcription import Transcriber
from asr_doge.models import load_model

Waveform = NDArray[np.float32]
Speech = tuple[Waveform, list[tuple[float, float]]]
"""Words in one waveform, and where each begins and ends, in seconds."""
Speak = Callable[[Sequence[str], np.random.Generator], Speech]
"""Says words, given a source of chance."""


@dataclass(frozen=True)
class RightString:
    """A string whose words were all right: its sound, where they are, and where they were found."""

    waveform: Waveform
    truth: list[tuple[float, float]]
    words: list[Word]


def main() -> int:
    """Measure every speaker and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits_dir", type=Path, required=True, help="Free Spoken Digit Dataset")
    parser.add_argument("--model", default="nano", help="checkpoint (default: nano)")
    parser.add_argument("--takes", default="test", choices=["all", "train", "test"], help="recordings (default: test)")
    parser.add_argument("--strings", type=int, default=60, help="of each speaker (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="of digits, takes, pauses and voices (default: 0)")
    parser.add_argument(
        "--labels",
        action="store_true",
        help="instead: how long after a word begins its first CTC label comes, and its last after it ends",
    )
    parser.add_argument("--snr", type=float, help="add white noise so many dB below the speech (default: none)")
    flags = parser.parse_args()
    try:
        transcriber = Transcriber(load_model(flags.model, device="cpu"), decoding=DecodingConfig(timestamps="word"))
        speakers: dict[str, Speak] = {"espeak-ng, joined": synthesized, "espeak-ng, in one breath": in_one_breath}
        speakers |= {name: spoken_by(own) for name, own in read_fsdd(flags.digits_dir, flags.takes).items()}
    except ASRDogeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if flags.labels:
        print("Label after boundary in ms: 5th percentile, median, 95th")
        print("| speaker | first label after the beginning | last label after the end |\n|---|---|---|")
    else:
        print("| speaker | strings right | words | median ms | 90th percentile ms |\n|---|---|---|---|---|")
    for name, speak in speakers.items():
        strings = list(right_strings(transcriber, speak, flags.strings, np.random.default_rng(flags.seed), flags.snr))
        if not strings:
            print(f"| {name} | none of {flags.strings} right |", flush=True)
            continue
        if flags.labels:
            print(f"| {name} | {' | '.join(label_offsets(transcriber, strings))} |", flush=True)
            continue
        errors = boundary_errors(strings)
        median, high = np.percentile(1000 * errors, [50, 90])
        right = f"{len(strings)} of {flags.strings}"
        print(f"| {name} | {right} | {len(errors) // 2} | {median:.0f} | {high:.0f} |", flush=True)
    return 0


def spoken_by(recordings: dict[str, list[Waveform]]) -> Speak:
    """A person's own recordings, each drawn anew."""
    return lambda words, rng: joined([recordings[word][rng.integers(len(recordings[word]))] for word in words], rng)


def synthesized(words: Sequence[str], rng: np.random.Generator) -> Speech:
    """Word by word, in a voice that nano was not trained on."""
    voice = random_voice(split_voices().unseen, rng)
    return joined([synthesize(word, voice) for word in words], rng)


def in_one_breath(words: Sequence[str], rng: np.random.Generator) -> Speech:
    """The same without pauses."""
    waveform, starts = synthesize_timed(" ".join(words), random_voice(split_voices().unseen, rng))
    first, end = sounding(waveform)
    starts[0] = first / SAMPLE_RATE
    return waveform, list(pairwise([*starts, end / SAMPLE_RATE]))


def right_strings(
    transcriber: Transcriber, speak: Speak, count: int, rng: np.random.Generator, snr: float | None
) -> Iterator[RightString]:
    """The strings that were recognized without an error, of `count`."""
    for _ in range(count):
        words = random_digits(rng, (2, 8))
        waveform, truth = speak(words, rng)
        if snr is not None:
            waveform = add_noise(waveform, snr, rng)
        found = [word for segment in transcriber.transcribe(waveform).segments for word in segment.words]
        if [word.text for word in found] == list(words):
            yield RightString(waveform, truth, found)


def boundary_errors(strings: Sequence[RightString]) -> NDArray[np.float64]:
    """Distances `[2 * words]` of all words' beginnings and ends from the truth, in seconds."""
    pairs = [pair for string in strings for pair in zip(string.words, string.truth, strict=True)]
    found = np.array([(word.start, word.end) for word, _ in pairs])
    return np.abs(found - [truth for _, truth in pairs]).ravel()


def label_offsets(transcriber: Transcriber, strings: Sequence[RightString]) -> list[str]:
    """How long after a word begins its first label comes, and its last after it ends: percentiles 5, 50, 95 in ms."""
    encoder = transcriber.recognizer.speech_encoder.encoder
    offsets: list[tuple[float, float]] = []
    for string in strings:
        speech = transcriber.recognizer.speech_encoder.encode(
            [normalize_level(string.waveform)], return_ctc_logits=True
        )
        assert speech.ctc_logits is not None
        assert speech.ctc_lengths is not None
        (log_posteriors,) = ctc_log_posteriors(speech.ctc_logits, speech.ctc_lengths)
        frames = label_frames(encoder, log_posteriors, [word.text for word in string.words])
        for labels, (start, end) in zip(frames or [], string.truth if frames else [], strict=True):
            if labels is not None:
                rate = encoder.ctc_frame_rate_hz
                offsets.append((labels.first / rate - start, labels.last / rate - end))
    columns = np.percentile(1000 * np.array(offsets), [5, 50, 95], axis=0).T
    return [", ".join(f"{value:.0f}" for value in column) for column in columns]


def joined(recordings: Sequence[Waveform], rng: np.random.Generator) -> Speech:
    """The sounds of recordings one after another with silence around each."""
    parts: list[Waveform] = []
    truth, length = [], 0
    for recording in [*recordings, None]:
        silence = np.zeros(int(rng.uniform(0.05, 0.4) * SAMPLE_RATE), np.float32)
        sound = recording[slice(*sounding(recording))] if recording is not None else np.zeros(0, np.float32)
        start = length + len(silence)
        length = start + len(sound)
        truth.append((start / SAMPLE_RATE, length / SAMPLE_RATE))
        parts += [silence, sound]
    return np.concatenate(parts), truth[:-1]


def sounding(recording: Waveform) -> tuple[int, int]:
    """First sample, and one past the last, that are not more than 40 dB below the loudest."""
    loud = np.flatnonzero(np.abs(recording) > 0.01 * np.abs(recording).max())
    return int(loud[0]), int(loud[-1]) + 1


if __name__ == "__main__":
    sys.exit(main())
