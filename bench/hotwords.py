"""What hotwords gain and what they cost, with each word of a list as the only hotword in turn.

Example:
    python bench/hotwords.py --manifest digit_strings/test.jsonl --words zero one two three four five
    python bench/hotwords.py --cost

Promises: recall is the share of a word's occurrences in the references that are recognized in their place; a false
insertion is one that is recognized where the reference has something else or nothing. Counts are summed over the words.
`--cost` prints the processor time of looking for many random words in 30 s of random posteriors, at Granite's 50 Hz.
It does not choose the weight: choose on other recordings than you report.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import jiwer
import numpy as np

from asr_doge.audio.reading import read_audio
from asr_doge.data.manifest import read_manifest
from asr_doge.decoding import DecodingConfig
from asr_doge.decoding.hotwords import spot_hotwords
from asr_doge.decoding.recognition import Recognizer, Waveform
from asr_doge.errors import ASRDogeError
from asr_doge.models import LoadedModel, load_model


def main() -> int:
    """Measure both decoders at several weights and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="checkpoint (default: nano)")
    parser.add_argument("--cost", action="store_true", help="only measure what looking for many words takes")
    parser.add_argument("--manifest", type=Path, help="recordings and their texts")
    parser.add_argument("--words", nargs="+", help="hotwords, each tried alone")
    parser.add_argument("--weights", nargs="+", type=float, default=[1.0], help="nats a letter (default: 1)")
    parser.add_argument("--utterances", type=int, default=100, help="at most so many (default: 100)")
    flags = parser.parse_args()
    if flags.cost:
        print_cost(load_model(flags.model, device="cpu"))
        return 0
    if not flags.manifest or not flags.words:
        parser.error("give --manifest and --words, or --cost")
    try:
        loaded = load_model(flags.model, device="cpu")
        utterances = read_manifest(flags.manifest)[: flags.utterances]
        clips = [read_audio(utterance.audio_path) for utterance in utterances]
    except ASRDogeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    references = [utterance.text for utterance in utterances]
    print("| decoder | weight | recall | false insertions |\n|---|---|---|---|")
    for decoder in ("ctc", "draft"):
        plain = recognize(loaded, clips, DecodingConfig(decoder=decoder))
        print(row(decoder, "none", [count(references, plain, word) for word in flags.words]))
        for weight in flags.weights:
            counts = []
            for word in flags.words:
                with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
                    file.write(word)
                    file.flush()
                    config = DecodingConfig(decoder=decoder, hotwords=file.name, hotword_weight=weight)
                    counts.append(count(references, recognize(loaded, clips, config), word))
            print(row(decoder, f"{weight:g}", counts), flush=True)
    return 0


def print_cost(loaded: LoadedModel) -> None:
    """Print a table of processor seconds by number of words."""
    rng = np.random.default_rng(0)
    posteriors = np.log(rng.dirichlet(np.full(128, 0.1), size=1500) + 1e-9).astype(np.float32)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = ["".join(rng.choice(letters, size=rng.integers(4, 12))) for _ in range(1000)]
    print("| words | seconds |\n|---|---|")
    for number in (1, 10, 100, 1000):
        start = time.process_time()
        spot_hotwords(loaded.model.encoder, posteriors, words[:number], 1.0)
        print(f"| {number} | {time.process_time() - start:.2f} |")


def recognize(loaded: LoadedModel, clips: list[Waveform], config: DecodingConfig) -> list[str]:
    """Texts of clips, in batches of 8."""
    recognizer = Recognizer(loaded, config)
    batches = (clips[start : start + 8] for start in range(0, len(clips), 8))
    return [one.text for batch in batches for one in recognizer.recognize(batch)]


def count(references: list[str], texts: list[str], word: str) -> tuple[int, int, int]:
    """How often the word is said, how often it is recognized where it is said, and how often where it is not."""
    hits = 0
    for reference, text in zip(references, texts, strict=True):
        for chunk in jiwer.process_words(reference, text).alignments[0]:
            if chunk.type == "equal":
                hits += reference.split()[chunk.ref_start_idx : chunk.ref_end_idx].count(word)
    said = sum(reference.split().count(word) for reference in references)
    return said, hits, sum(text.split().count(word) for text in texts) - hits


def row(decoder: str, weight: str, counts: list[tuple[int, int, int]]) -> str:
    """A line of the table, over all words."""
    said, hits, false = (sum(column) for column in zip(*counts, strict=True))
    return f"| {decoder} | {weight} | {100 * hits / max(said, 1):.1f} % of {said} | {false} |"


if __name__ == "__main__":
    sys.exit(main())
