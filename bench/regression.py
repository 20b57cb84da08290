"""Counts that must not grow unnoticed, on nano: language-model passes, padding, bytes and parameters, no times.

    python bench/regression.py                                   # exit code 1 if something has grown grossly
    python bench/regression.py --wheel dist/asr_doge-*.whl       # the wheel's bytes too, as the gate does
    python bench/regression.py --update                          # accept what is found

Promises: every count is the same on any machine, up to the speech synthesizer's version; each is compared with
bench/regression.json and may be up to `ALLOWED` times what stands there.
It does not know speed: see bench/speed.py.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from asr_doge.data.atomic_writing import write_atomically
from asr_doge.data.batching import LengthBatches
from asr_doge.data.digits import DigitClip, split_voices, synthesized_clips, write_clips
from asr_doge.data.manifest import read_manifest, write_manifest
from asr_doge.decoding.configuration import DecoderName, DecodingConfig
from asr_doge.inference.configuration import FeaturesConfig
from asr_doge.inference.features import compute_features
from asr_doge.inference.transcription import Transcriber
from asr_doge.models import LoadedModel, load_model

EXPECTED = Path(__file__).with_suffix(".json")
ALLOWED = 1.5
CLIPS = 12


def passes(loaded: LoadedModel, clips: list[DigitClip], decoder: DecoderName) -> float:
    """Mean times the language model runs for a clip."""
    transcriber = Transcriber(loaded, decoding=DecodingConfig(decoder=decoder))
    heard = transcriber.transcribe([clip.waveform for clip in clips])
    return sum(result.passes for result in heard) / len(clips)


def encoder_frames(loaded: LoadedModel, clips: list[DigitClip]) -> float:
    """Frames that the encoder's layers see, for each real frame of a batch of unequal clips."""
    seen = 0

    def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal seen
        seen += inputs[0].shape[:-1].numel()

    waveforms = [clip.waveform[: len(clip.waveform) // (number + 1)] for number, clip in enumerate(clips[:8])]
    mask = loaded.processor(audio=waveforms)["attention_mask"]
    handle = loaded.model.encoder.get_submodule("encoder.input_linear").register_forward_pre_hook(count)
    loaded.speech_encoder.encode(waveforms)
    handle.remove()
    return seen / int(mask.sum())


def training_padding() -> float:
    """Share of padding in batches by length, of 2,000 clips of 0.5 to 30 s."""
    lengths = np.random.default_rng(0).uniform(0.5, 30.0, 2000)
    return LengthBatches(lengths.tolist(), limit=240.0).padding_share()


def cache_bytes(clips: list[DigitClip], folder: Path) -> float:
    """Bytes of the feature cache for each second of audio."""
    utterances = read_manifest(write_clips(folder, "train", clips))
    write_manifest(folder / "train_manifest.json", utterances)
    compute_features(FeaturesConfig(str(folder), speech_encoder="nano/encoder", device="cpu"))
    return size_of(folder / "features") / sum(utterance.duration for utterance in utterances)


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def count_all(wheel: Path | None) -> dict[str, float]:
    """Every count, by name."""
    torch.set_num_threads(1)
    loaded = load_model("nano", device="cpu")
    clips = list(synthesized_clips(CLIPS, split_voices().unseen, seed=11))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        loaded.save(folder / "checkpoint")
        counts: dict[str, float] = {
            "language_model_passes_draft": passes(loaded, clips, "draft"),
            "language_model_passes_greedy": passes(loaded, clips, "greedy"),
            "encoder_frames_per_real_frame": encoder_frames(loaded, clips),
            "training_padding_share": training_padding(),
            "feature_cache_bytes_per_second": cache_bytes(clips, folder / "corpus"),
            "checkpoint_bytes": size_of(folder / "checkpoint"),
            "trainable_parameters": loaded.model.count_parameters().trainable,
        }
    return counts | ({"wheel_bytes": wheel.stat().st_size} if wheel else {})


def grown(counts: dict[str, float], expected: dict[str, float]) -> list[str]:
    """What is wrong with each count that is grossly more than expected, or not expected at all."""
    remedy = "accept it with python bench/regression.py --update"
    errors = []
    for name, found in counts.items():
        if name not in expected:
            errors.append(f"{name} is not in bench/{EXPECTED.name}: {remedy}")
        elif not found <= ALLOWED * expected[name]:
            known = f"{ALLOWED} times the {expected[name]:,.4g} of bench/{EXPECTED.name}"
            errors.append(f"{name} is {found:,.4g}, more than {known}: find out why, or {remedy}")
    return errors


def main() -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--wheel", type=Path, help="a built wheel, to be weighed too")
    parser.add_argument("--update", action="store_true", help=f"write what is found to {EXPECTED.name}")
    options = parser.parse_args()
    expected: dict[str, float] = json.loads(EXPECTED.read_text(encoding="utf-8")) if EXPECTED.exists() else {}
    counts = count_all(options.wheel)
    if options.update:
        content = {name: round(value, 4) for name, value in (expected | counts).items()}
        write_atomically(EXPECTED, (json.dumps(content, indent=2) + "\n").encode())
        return 0
    for name, found in counts.items():
        print(f"{name:<32} {found:>12,.4g}   expected {expected.get(name, float('nan')):,.4g}")
    errors = grown(counts, expected)
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
