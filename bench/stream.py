"""How far behind the speaker a stream is: latency of committed words, at the pace of speech.

Promises: digit strings of real speakers (Free Spoken Digit Dataset) are fed in blocks of 100 ms, each when it would
have been spoken; of every word that came out right it is known when it ended, so its latency is measured twice: in
audio heard until it was committed, and by the clock. It also counts how often words that were committed are not in the
finished text, whether that is the file's, and the work per second of audio. It does not measure accuracy.

    python bench/stream.py --digits_dir ./fsdd --strings 10 --output_json stream.json
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from asr_doge.audio import SAMPLE_RATE
from asr_doge.data.digits import random_digits, read_fsdd
from asr_doge.decoding.configuration import DecodingConfig
from asr_doge.inference.stream import StreamTranscriber
from asr_doge.inference.transcription import Transcriber, load

BLOCK_SECONDS = 0.1
BIN_SECONDS = 0.1


@dataclass
class Measured:
    """What all streams showed."""

    audio_behind: list[float] = field(default_factory=list)
    """Seconds of audio from a word's end to its commitment, for each word that came out right."""
    clock_behind: list[float] = field(default_factory=list)
    """The same by the clock."""
    revised: int = 0
    """Streams of which a committed word is not in the finished text."""
    unlike_file: int = 0
    """Streams whose finished text is not the file's."""
    busy: float = 0.0
    """Seconds of work."""
    audio: float = 0.0
    """Seconds of audio."""


def digit_string(
    recordings: dict[str, list[NDArray[np.float32]]], rng: np.random.Generator
) -> tuple[NDArray[np.float32], list[str], list[float]]:
    """One speaker's digits with short pauses and a long one at the end: the waveform, its words, and their ends."""
    words = random_digits(rng, (4, 8))
    parts = [np.zeros(int(0.3 * SAMPLE_RATE), dtype=np.float32)]
    ends = []
    for word in words:
        parts.append(recordings[word][rng.integers(len(recordings[word]))])
        ends.append(sum(map(len, parts)) / SAMPLE_RATE)
        parts.append(np.zeros(int(rng.uniform(0.05, 0.4) * SAMPLE_RATE), dtype=np.float32))
    parts.append(np.zeros(int(1.5 * SAMPLE_RATE), dtype=np.float32))
    return np.concatenate(parts), words, ends


def measure(
    transcriber: Transcriber, waveform: NDArray[np.float32], words: list[str], ends: list[float], m: Measured
) -> None:
    """Stream one string at its own pace."""
    live = StreamTranscriber(transcriber)
    said: list[tuple[str, float, float]] = []  # each committed word, with the audio heard and the time passed then
    done: list[str] = []
    was_revised = False
    size = int(BLOCK_SECONDS * SAMPLE_RATE)
    begin = time.perf_counter()
    for start in range(0, len(waveform), size):
        block = waveform[start : start + size]
        time.sleep(max(0.0, (start + len(block)) / SAMPLE_RATE - (time.perf_counter() - begin)))
        before = time.perf_counter()
        update = live.feed(block)
        passed = time.perf_counter() - begin
        m.busy += passed - (before - begin)
        if update is None:
            continue
        done += [word for segment in update.finished for word in segment.text.split()]
        if update.finished:
            was_revised = was_revised or [word for word, _, _ in said] != done[: len(said)]
        now = [*done, *update.committed.split()]
        said += [(word, update.seconds, passed) for word in now[len(said) :]]
    live.finish()
    m.audio += len(waveform) / SAMPLE_RATE
    m.revised += was_revised
    m.unlike_file += live.transcription().text != transcriber.transcribe(waveform).text
    for match in SequenceMatcher(a=words, b=[word for word, _, _ in said], autojunk=False).get_matching_blocks():
        for offset in range(match.size):
            _, heard, passed = said[match.b + offset]
            m.audio_behind.append(heard - ends[match.a + offset])
            m.clock_behind.append(passed - ends[match.a + offset])


def histogram(values: Sequence[float]) -> str:
    """Bars of counts, a line for each tenth of a second."""
    bins = np.floor(np.asarray(values) / BIN_SECONDS + 1e-9).astype(int)
    lines = []
    for index in range(bins.min(), bins.max() + 1):
        count = int((bins == index).sum())
        lines.append(f"{index * BIN_SECONDS:5.1f} s  {count:4d}  {'#' * round(60 * count / len(bins) * 2)}")
    return "\n".join(lines)


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits_dir", type=Path, required=True, help="Free Spoken Digit Dataset")
    parser.add_argument("--model", default="nano", help="checkpoint")
    parser.add_argument("--strings", type=int, default=10, help="digit strings of each speaker")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_json", type=Path, help="report to write")
    options = parser.parse_args()
    transcriber = load(options.model, device="cpu", decoding=DecodingConfig(cut_at_pauses=True))  # as streams
    transcriber.transcribe(np.zeros(SAMPLE_RATE, dtype=np.float32) + 0.01)  # warm
    rng = np.random.default_rng(options.seed)
    measured = Measured()
    recordings = read_fsdd(options.digits_dir, takes="test")
    for _, by_digit in sorted(recordings.items()):
        for _ in range(options.strings):
            measure(transcriber, *digit_string(by_digit, rng), measured)
    report = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "date": date.today().isoformat(),
        "streams": options.strings * len(recordings),
        "words_right": len(measured.audio_behind),
        "audio_behind_median_s": round(statistics.median(measured.audio_behind), 3),
        "audio_behind_p95_s": round(float(np.quantile(measured.audio_behind, 0.95)), 3),
        "clock_behind_median_s": round(statistics.median(measured.clock_behind), 3),
        "clock_behind_p95_s": round(float(np.quantile(measured.clock_behind, 0.95)), 3),
        "streams_with_committed_words_revised": measured.revised,
        "streams_unlike_file": measured.unlike_file,
        "work_s_per_s_of_audio": round(measured.busy / measured.audio, 3),
    }
    print(json.dumps(report, indent=2))
    print("\naudio heard from the end of a word to its commitment:")
    print(histogram(measured.audio_behind))
    if options.output_json:
        options.output_json.write_text(json.dumps(report | {"audio_behind_s": measured.audio_behind}, indent=2) + "\n")


if __name__ == "__main__":
    main()
