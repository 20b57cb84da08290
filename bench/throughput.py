"""Training in samples a second: `asr-doge train` from the feature cache, beside the original's loop, in one run.

    python bench/throughput.py --sizes nano
    python bench/throughput.py --sizes published --utterances 8 --batch_size 4    # 8.5 GB of memory, minutes
    python bench/throughput.py --sizes small                                     # to see that it runs

Promises: the original reads the audio and runs the encoder at every step, takes a fixed number of utterances in no
order, padded to the longest, and gives the language model's logits of every position (`bench/original.py`; its idle
2.5B language model is left out of memory). Ours reads the same utterances from a feature cache, in batches of like
length and of as many seconds, as `--batch_seconds` does. Both train the adapter alone, in float32. Recordings are of
noise, from 2 to 16 s at even steps, with three words a second. Seconds are of the processor, so that other work on the
machine counts little. Beside the measured ratio stands that of the floating point operations, which bounds it on a
machine that is equally good at all of them. It says nothing of accuracy, or of what filling the cache costs.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

import numpy as np
import soundfile
import torch
from original import Original, doge_config, granite_config, randomize
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.flop_counter import FlopCounterMode
from transformers import DogeConfig, GraniteSpeechConfig, PreTrainedConfig

from asr_doge.audio.log_mel import log_mel_features
from asr_doge.audio.reading import read_audio
from asr_doge.data.atomic_writing import write_atomically
from asr_doge.data.batching import LengthBatches
from asr_doge.data.feature_cache import FeatureCache
from asr_doge.data.feature_cache_writer import FeatureCacheWriter
from asr_doge.data.feature_shards import Features
from asr_doge.data.manifest import Utterance
from asr_doge.models import ASRDogeConfig, ASRDogeForConditionalGeneration, ASRDogeProcessor, load_model
from asr_doge.training.datasets import CachedSpeechDataset, collate_examples

SAMPLE_RATE = 16_000
SECONDS = (2.0, 16.0)
WORDS_PER_SECOND = 3
HIDDEN_DIMS = {"small": 16, "nano": 256, "published": 512}
Epoch = Callable[[], None]


def configurations(sizes: str) -> tuple[GraniteSpeechConfig, DogeConfig]:
    """Speech encoder and language model, the former without the language model that it was published with."""
    if sizes == "nano":
        nano = load_model("nano", device="cpu").model.config
        granite, doge = cast(GraniteSpeechConfig, nano.encoder_config), cast(DogeConfig, nano.text_config)
    else:
        granite, doge = granite_config(sizes == "small"), doge_config(sizes == "small")
    idle = {"num_hidden_layers": 1, "vocab_size": 64, "intermediate_size": 32}
    cast(PreTrainedConfig, granite.text_config).update(idle)
    granite.audio_token_index = 63
    doge.vocab_size = max(doge.vocab_size, 512)  # nano's tokenizer spells for all
    return granite, doge


def make_recordings(folder: Path, count: int) -> list[Utterance]:
    """Noise on disk, with texts."""
    rng = np.random.default_rng(0)
    made = []
    for number, seconds in enumerate(np.linspace(*SECONDS, count)):
        path = folder / f"{number}.wav"
        soundfile.write(path, 0.1 * rng.standard_normal(round(seconds * SAMPLE_RATE)), SAMPLE_RATE)
        text = " ".join(rng.choice(["one", "two", "three"], round(seconds * WORDS_PER_SECOND)))
        made.append(Utterance(str(number), path, text, text, float(seconds)))
    return made


def features_of(utterance: Utterance) -> Tensor:
    """`[T, 160]`, from the file."""
    return log_mel_features(torch.from_numpy(read_audio(utterance.audio_path, SAMPLE_RATE)))


def fill_cache(model: ASRDogeForConditionalGeneration, utterances: Sequence[Utterance], folder: Path) -> FeatureCache:
    """What the encoder hears in each recording."""
    with FeatureCacheWriter(folder, {"encoder": "random"}) as writer, writer.shard(0) as shard:
        for utterance in utterances:
            features = features_of(utterance)[None]
            encoded = model.encode(features, torch.ones(features.shape[:2], dtype=torch.long))
            shard.add(utterance.id, "0", [Features(encoded.speech_embeddings[0])])
    return FeatureCache.open(folder)


def step(model: torch.nn.Module, loss: Tensor) -> None:
    """One step on the adapter; nothing else is trained."""
    loss.backward()
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.data.add_(parameter.grad, alpha=-1e-6)
            parameter.grad = None


def ours(
    model: ASRDogeForConditionalGeneration, examples: CachedSpeechDataset, batches: Sequence[Sequence[int]]
) -> Epoch:
    """An epoch from the cache."""

    def epoch() -> None:
        for indices in batches:
            batch = collate_examples([examples[index] for index in indices])
            step(model, model(**batch).loss)

    return epoch


def theirs(original: Original, utterances: Sequence[Utterance], processor: ASRDogeProcessor, batch_size: int) -> Epoch:
    """An epoch the original's way."""
    prompt = processor.prompt_ids()
    order = np.random.default_rng(0).permutation(len(utterances)).tolist()

    def epoch() -> None:
        for start in range(0, len(order), batch_size):
            chosen = [utterances[index] for index in order[start : start + batch_size]]
            features = pad_sequence([features_of(one) for one in chosen], batch_first=True)
            labels = pad_sequence([processor.text_ids(one.text)[:-1] for one in chosen], batch_first=True)
            step(original, original.loss(features, prompt, labels))

    return epoch


def measure(sizes: str, count: int, batch_size: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Both ways, by turns."""
    processor = load_model("nano", device="cpu").processor
    granite, doge = configurations(sizes)
    utterances = make_recordings(folder, count)
    config = ASRDogeConfig(
        encoder_config=granite,
        text_config=doge,
        adapter_hidden_dim=HIDDEN_DIMS[sizes],
        prompt_ids=processor.prompt_ids().tolist(),
    )
    model = ASRDogeForConditionalGeneration(config).float()  # nano is stored in half precision
    randomize(model)
    model.train()
    examples = CachedSpeechDataset(utterances, processor, fill_cache(model, utterances, folder / "features"))
    durations = [utterance.duration for utterance in utterances]
    batches = LengthBatches(durations, batch_size * float(np.mean(durations))).batches(0)
    original = Original(granite, doge, HIDDEN_DIMS[sizes]).float()
    randomize(original)
    for part in (original.eval().speech, original.language_model):
        part.requires_grad_(False)
    ways = {"original": theirs(original, utterances, processor, batch_size), "asr_doge": ours(model, examples, batches)}
    operations = {name: _operations(epoch) for name, epoch in ways.items()}
    times = {name: min(spent) for name, spent in _times(ways, rounds).items()}
    return {
        "samples_per_second": {name: count / seconds for name, seconds in times.items()},
        "audio_seconds_per_second": {name: sum(durations) / seconds for name, seconds in times.items()},
        "ratio": times["original"] / times["asr_doge"],
        "operations_ratio": operations["original"] / operations["asr_doge"],
    }


def _operations(epoch: Epoch) -> int:
    """Floating point operations; also warms up."""
    with FlopCounterMode(display=False) as counter:
        epoch()
    return counter.get_total_flops()


def _times(ways: dict[str, Epoch], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, epoch in ways.items():
            start = time.process_time()
            epoch()
            times[name].append(time.process_time() - start)
    return times


def main() -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--sizes", choices=HIDDEN_DIMS, default="nano", help="of the model (default nano)")
    parser.add_argument("--utterances", type=int, default=64, help="recordings (default 64)")
    parser.add_argument("--batch_size", type=int, default=16, help="of the original; ours takes as many seconds")
    parser.add_argument("--rounds", type=int, default=3, help="epochs of each way; the best counts (default 3)")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(options.sizes, options.utterances, options.batch_size, options.rounds, Path(folder))
    report = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "settings": {name: value for name, value in vars(options).items() if name != "output"},
        **figures,
    }
    if options.output:
        write_atomically(options.output, (json.dumps(report, indent=2) + "\n").encode())
    for way, rate in figures["samples_per_second"].items():
        seconds = figures["audio_seconds_per_second"][way]
        print(f"{way:<10} {rate:8.2f} samples, {seconds:7.1f} s of audio, per second of processor")
    print(f"ratio {figures['ratio']:.1f}; of floating point operations {figures['operations_ratio']:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
