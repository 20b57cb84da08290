"""Where the guards are wrong: words written where nobody speaks, and speech that is taken for none.

Promises: everything goes the way of `asr-doge transcribe`. Of computed sounds (silence, noise, tones, music-like ones)
it counts the words with all guards, and those of the first minute with none; of recordings of speech, how many the
guard of silence blanked, and in how many a part; and in how many clips there is a steady stretch, which it silences.
It does not know real music or rooms, nor whether the words that are left are right.

    python bench/guards.py --minutes 10
    python bench/guards.py --minutes 0 --digits_dir ./fsdd --speech ./speech/test.jsonl
    python bench/guards.py --minutes 0 --digits_dir ./fsdd --speech ./speech/test.jsonl --count 5000 --only_steady
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asr_doge.audio import SAMPLE_RATE, read_audio
from asr_doge.data.digits import list_fsdd, read_fsdd, recorded_clips
from asr_doge.data.manifest import read_manifest
from asr_doge.decoding import DecodingConfig
from asr_doge.decoding.guards import steady_stretches
from asr_doge.inference.results import Transcription
from asr_doge.inference.transcription import Transcriber
from asr_doge.models import load_model

Waveform = NDArray[np.float32]


def main() -> int:
    """Transcribe everything and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="checkpoint (default: nano)")
    parser.add_argument("--minutes", type=float, default=10.0, help="of each sound, 0 for none (default: 10)")
    parser.add_argument("--sounds", nargs="+", help="some of them, by name (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of noise and melodies (default: 0)")
    parser.add_argument(
        "--digits_dir", type=Path, help="Free Spoken Digit Dataset: its test split one by one, and strings"
    )
    parser.add_argument("--strings", type=int, default=120, help="digit strings of each speaker (default: 120)")
    parser.add_argument("--speech", type=Path, nargs="*", default=[], help="manifests of recordings of speech")
    parser.add_argument("--count", type=int, default=200, help="recordings of each manifest (default: 200)")
    parser.add_argument("--only_steady", action="store_true", help="look for steady stretches, and run no model")
    flags = parser.parse_args()
    if flags.only_steady:
        for name, waveforms in speech_of(flags):
            found = [bool(steady_stretches(waveform, SAMPLE_RATE)) for waveform in waveforms]
            print(f"{name}: a steady stretch in {sum(found)} of {len(found)}", flush=True)
        return 0
    loaded = load_model(flags.model, device="cpu")
    guarded = Transcriber(loaded)
    free = Transcriber(loaded, decoding=DecodingConfig(guard_silence=False, guard_length=False, guard_loops=False))
    if flags.minutes:
        print(f"| {flags.minutes:g} minutes of | words | of the first minute, without guards |\n|---|---|---|")
        for name, sound in sounds(int(60 * flags.minutes * SAMPLE_RATE), flags.seed).items():
            if flags.sounds is None or name in flags.sounds:
                unguarded = free.transcribe(sound[: 60 * SAMPLE_RATE])
                words = [len(result.text.split()) for result in (guarded.transcribe(sound), unguarded)]
                print(f"| {name} | {words[0]} | {words[1]} |", flush=True)
    kinds = speech_of(flags)
    if kinds:
        print("| speech | recordings | blanked | in part |\n|---|---|---|---|")
    for name, waveforms in kinds:
        results = list(guarded.transcribe_each(waveforms))
        blanked = [blanked_share(result) for result in results if isinstance(result, Transcription)]
        some = sum(0 < share < 1 for share in blanked)
        print(f"| {name} | {len(results)} | {sum(share == 1 for share in blanked)} | {some} |", flush=True)
    return 0


def speech_of(flags: argparse.Namespace) -> list[tuple[str, Iterable[Waveform]]]:
    """The recordings of speech that the flags name."""
    kinds: list[tuple[str, Iterable[Waveform]]] = []
    if flags.digits_dir:
        kinds = [("single digits", single_digits(flags.digits_dir))]
        clips = recorded_clips(flags.strings, read_fsdd(flags.digits_dir, takes="test"), flags.seed)
        kinds.append(("digit strings", (clip.waveform for clip in clips)))
    return kinds + [(str(path), recordings_of(path, flags.count)) for path in flags.speech]


def blanked_share(result: Transcription) -> float:
    """Share of a recording's length that was taken for silence: 1 if no text is left of it."""
    if not result.text and any(action.guard == "silence" for action in result.guards):
        return 1.0
    blank = sum(action.end - action.start for action in result.guards if action.guard == "silence")
    return blank / result.duration


def single_digits(folder: Path) -> Iterator[Waveform]:
    """The authors' test split, recording by recording."""
    return (read_audio(recording.path) for recording in list_fsdd(folder) if recording.is_test)


def recordings_of(manifest: Path, count: int) -> Iterator[Waveform]:
    """The first recordings of a manifest."""
    return (read_audio(utterance.audio_path) for utterance in islice(read_manifest(manifest), count))


def sounds(samples: int, seed: int = 0) -> dict[str, Waveform]:
    """Sounds `[samples]` that are no speech."""
    rng = np.random.default_rng(seed)
    time = np.arange(samples) / SAMPLE_RATE
    white = rng.standard_normal(samples)
    spectrum = np.fft.rfft(white)
    pink = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1)), samples)
    tone = np.sin(2 * np.pi * 440 * time)
    notes = 262 * 2 ** (rng.integers(0, 13, samples // (SAMPLE_RATE // 2) + 1) / 12)
    phase = np.cumsum(np.repeat(notes, SAMPLE_RATE // 2)[:samples]) / SAMPLE_RATE
    strings = sum(np.sin(2 * np.pi * h * phase + 0.3 * h * np.sin(2 * np.pi * 5 * time)) / h for h in range(1, 9))
    made = {
        "digital silence": np.zeros(samples),
        "white noise, -60 dB": 0.001 * white,
        "white noise, -20 dB": 0.1 * white,
        "pink noise, -20 dB": 0.1 * pink / pink.std(),
        "a tone of 440 Hz": 0.3 * tone,
        "beeps": 0.3 * tone * (time % 1 < 0.3),
        "a melody": 0.3 * np.sin(2 * np.pi * phase) * np.exp(-4 * (time % 0.5)),
        "a melody of strings, with vibrato": 0.2 * strings * np.exp(-3 * (time % 0.5)),
        "drums": 0.3 * white * np.exp(-30 * (time % 0.25)),
        "a siren": 0.3 * np.sin(2 * np.pi * (800 * time - 300 * np.cos(np.pi * time))),
        "noise that swells": 0.1 * white * (1 + np.sin(4 * np.pi * time)) / 2,
    }
    return {name: sound.astype(np.float32) for name, sound in made.items()}


if __name__ == "__main__":
    sys.exit(main())
