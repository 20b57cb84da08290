"""Fit the calibration of word confidences on one manifest, and measure it on another.

Example:
    python bench/confidence.py --fit dev_strings/dev.jsonl --measure test_strings/test.jsonl

Prints the weights of `asr_doge.decoding.confidence.CALIBRATION`, and the expected calibration error on the second
manifest with the weights in use and with the new ones. A word is right if the alignment with the reference that
has the fewest errors says so.

Promises: what is measured is not what was fitted on, if the manifests differ.
It writes the weights nowhere but, with `--save`, into the checkpoint.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import jiwer
import numpy as np
import torch
import torch.nn.functional as F

from asr_doge.audio.reading import read_audio
from asr_doge.data.atomic_writing import write_atomically
from asr_doge.data.manifest import read_manifest
from asr_doge.decoding import DecodingConfig
from asr_doge.decoding.confidence import Calibration
from asr_doge.decoding.recognition import Recognizer
from asr_doge.errors import ASRDogeError
from asr_doge.models import load_model
from asr_doge.text.normalization import normalize_training_text

Words = list[tuple[float, float, bool]]
"""Log-posterior, log-probability, and whether it is right, of each word."""


def main() -> int:
    """Fit, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="checkpoint (default: nano)")
    parser.add_argument("--fit", type=Path, required=True, help="manifest to fit on")
    parser.add_argument("--measure", type=Path, required=True, help="manifest to measure on")
    parser.add_argument(
        "--save", action="store_true", help="write the fitted weights into the checkpoint's config.json"
    )
    flags = parser.parse_args()
    try:
        recognizer = Recognizer(load_model(flags.model, device="cpu"), DecodingConfig(timestamps="word"))
        fitted = fit(recognized_words(recognizer, flags.fit))
        words = recognized_words(recognizer, flags.measure)
    except ASRDogeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{fitted}")
    right = [is_right for _, _, is_right in words]
    print(f"{len(words)} words, {100 * sum(right) / len(words):.1f} % right; expected calibration error:")
    for name, calibration in (("in use", recognizer.calibration), ("fitted", fitted)):
        distance = expected_calibration_error([calibration(ctc, lm) for ctc, lm, _ in words], right)
        print(f"  {name}: {100 * distance:.1f} %")
    if flags.save:
        save(Path(flags.model), fitted)
    return 0


def expected_calibration_error(confidences: Sequence[float], correct: Sequence[bool]) -> float:
    """Mean distance between confidence and share of right words, over ten equal intervals of confidence."""
    values, right = np.asarray(confidences, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    places = np.minimum((values * 10).astype(int), 9)
    gaps = [abs(values[places == b].sum() - right[places == b].sum()) for b in range(10)]
    return float(sum(gaps) / max(len(values), 1))


def save(checkpoint: Path, calibration: Calibration) -> None:
    """Put the weights into a checkpoint's configuration, where `Recognizer` finds them."""
    path = checkpoint / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    write_atomically(path, json.dumps({**config, "calibration": asdict(calibration)}, indent=2).encode())


def recognized_words(recognizer: Recognizer, manifest: Path) -> Words:
    """Every word that is recognized in the recordings of a manifest."""
    words: Words = []
    for utterance in read_manifest(manifest):
        recognized = recognizer.recognize([read_audio(utterance.audio_path)])[0].words
        right = right_words(utterance.text, [word.text for word in recognized])
        words += [
            (word.log_posterior or 0.0, word.log_prob or 0.0, is_right)
            for word, is_right in zip(recognized, right, strict=True)
        ]
    return words


def right_words(reference: str, words: list[str]) -> list[bool]:
    """Whether each of the words stands in the reference, whatever its case and punctuation."""
    right = [False] * len(words)
    said = normalize_training_text(reference)
    if words and said:
        plain = " ".join(normalize_training_text(word).replace(" ", "") or word for word in words)
        for chunk in jiwer.process_words(said, plain).alignments[0]:
            right[chunk.hyp_start_idx : chunk.hyp_end_idx] = [chunk.type == "equal"] * (
                chunk.hyp_end_idx - chunk.hyp_start_idx
            )
    return right


def fit(words: Words) -> Calibration:
    """The logistic regression of being right, with weights that are not negative."""
    data = torch.tensor(words, dtype=torch.float64)
    weights = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        evidence = weights[0] + data[:, :2] @ F.softplus(weights[1:])
        value = F.binary_cross_entropy_with_logits(evidence, data[:, 2])
        value.backward()
        return value

    optimizer.step(loss)
    ctc, language_model = F.softplus(weights[1:]).tolist()
    return Calibration(round(weights[0].item(), 2), round(ctc, 2), round(language_model, 2))


if __name__ == "__main__":
    sys.exit(main())
