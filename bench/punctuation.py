"""How right case and punctuation are: of texts whose own are known, written from their plain words.

    python bench/punctuation.py --manifest ljspeech/test.jsonl

Promises: each transcript of the manifest is written by itself, from its plain words; marks count as right if they are
those of the transcript (a semicolon or colon counts as a comma), and words if their case is. It says nothing of audio,
nor of what becomes of words that were recognized wrong.
"""

import argparse
import json
from pathlib import Path

from asr_doge.data.manifest import read_manifest
from asr_doge.models.checkpoints import find_model
from asr_doge.models.punctuation import load_punctuator
from asr_doge.text.punctuation import labelled_words
from asr_doge.training.pretraining_punctuation import evaluate


def main() -> None:
    """Measure and print, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, required=True, help="Transcripts with case and punctuation.")
    parser.add_argument("--model", default="english", help="Checkpoint with a folder punctuation.")
    options = parser.parse_args()
    texts = [labelled_words(utterance.raw_text) for utterance in read_manifest(options.manifest)]
    sentences = [text for text in texts if text]
    results = evaluate(load_punctuator(find_model(options.model)), sentences, together=1)
    print(json.dumps({"texts": len(sentences), **results}, indent=2))


if __name__ == "__main__":
    main()
