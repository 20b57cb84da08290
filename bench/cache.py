"""What the feature cache is worth: training steps, reading, memory, rounding and padding, as ratios of one run.

Example (on processed speech, `asr-doge process`; about five minutes on two cores, `--published` a few more and 5 GB):

    python bench/cache.py --data_dir ./processed --output cache.json --published

Promises: both sides of a ratio are measured in this run, in turn, on the same utterances, through the same functions
that `features` and `train` use; what is printed is also written as JSON. It downloads nothing: the published sizes have
random weights. It tunes nothing and says nothing of accuracy.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from asr_doge.data.batching import LengthBatches
from asr_doge.data.feature_cache import FeatureCache
from asr_doge.data.feature_cache_writer import FeatureCacheWriter
from asr_doge.data.feature_shards import Features, Storage
from asr_doge.data.manifest import Utterance, read_manifest, sample_utterances, write_manifest
from asr_doge.inference.configuration import FeaturesConfig
from asr_doge.inference.features import compute_features
from asr_doge.models import load_model
from asr_doge.models.configuration_asr_doge import ASRDogeConfig
from asr_doge.models.modeling_asr_doge import ASRDogeForConditionalGeneration
from asr_doge.text.scoring import score
from asr_doge.training.datasets import CachedSpeechDataset, SpeechDataset, UtteranceDataset, collate_examples

Report = dict[str, Any]


def main() -> None:
    """Run every measurement and write the report."""
    parser = argparse.ArgumentParser(description="Measure the feature cache.")
    parser.add_argument("--data_dir", type=Path, required=True, help="Folder of train_manifest.json.")
    parser.add_argument("--output", type=Path, required=True, help="JSON report to write.")
    parser.add_argument("--utterances", type=int, default=128, help="Utterances to train on.")
    parser.add_argument(
        "--rounds", type=int, default=3, help="Times each side of a ratio is measured; the best counts."
    )
    parser.add_argument("--published", action="store_true", help="Also train at the published sizes.")
    parser.add_argument("--loss_only", action="store_true", help="Measure only what precision costs in loss and words.")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    everything = read_manifest(options.data_dir / "train_manifest.json")
    utterances = sample_utterances(everything, options.utterances)
    report: Report = {"machine": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if not options.loss_only:
            report["memory"] = peak_memory(utterances, work / "memory")  # first, while this process is small
            report["bookkeeping"] = bookkeeping(work / "bookkeeping")
            report["padding"] = padding(everything)
            report["reading"] = state(work / "reading", options.rounds)
            report["nano"] = nano_steps(utterances, work / "nano", options.rounds)
        report["loss"] = rounding(utterances, work / "loss")
        if options.published:
            report["published"] = published_steps(utterances[:4])
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


def peak_memory(utterances: Sequence[Utterance], folder: Path) -> Report:
    """Largest memory of `features` over a corpus, and over one eight times as large, in MB."""
    peaks = {}
    for times in (1, 8):
        copies = [replace(u, id=f"{u.id}-{number}") for number in range(times) for u in utterances]
        write_manifest(folder / str(times) / "train_manifest.json", copies)
        queue: multiprocessing.Queue[float] = multiprocessing.Queue()
        process = multiprocessing.Process(target=_encode_and_tell_memory, args=(folder / str(times), queue))
        process.start()
        peaks[len(copies)] = queue.get()
        process.join()
    small, large = peaks.values()
    return {"peak_mb_by_utterances": peaks, "ratio": large / small}


def _encode_and_tell_memory(folder: Path, queue: "multiprocessing.Queue[float]") -> None:
    _compute(folder, shard_minutes=0.5, batch_seconds=15.0)  # several files and many batches in the smaller corpus too
    queue.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def _compute(folder: Path, **options: Any) -> FeatureCache:
    config = FeaturesConfig(str(folder), speech_encoder="nano/encoder", device="cpu", **options)
    return FeatureCache.open(compute_features(config).folder)


def bookkeeping(folder: Path, count: int = 20_000) -> Report:
    """What an utterance costs beside its features: memory of manifests and of an open cache, and time to open it."""
    made = [
        Utterance(f"1089-134686-{n:07d}", folder / f"{n}.flac", "a " * 90, "A " * 90, 12.3, "1089")
        for n in range(count)
    ]
    write_manifest(folder / "train_manifest.json", made)
    with FeatureCacheWriter(folder, {"encoder": "none"}, num_shards=64) as writer:
        for number in range(64):
            with writer.shard(number) as shard:
                for utterance in made:
                    if writer.shard_of(utterance.id) == number:
                        shard.add(utterance.id, "123456-1700000000000000000", [Features(torch.zeros(1, 1))])
    del made
    queued = {}
    loaders: dict[str, Callable[[], object]] = {
        "manifest": lambda: read_manifest(folder / "train_manifest.json"),
        "cache": lambda: FeatureCache.open(folder),
    }
    for name, load in loaders.items():
        tracemalloc.start()
        kept = load()
        queued[name] = tracemalloc.get_traced_memory()[0] / count
        tracemalloc.stop()
        del kept
    start = time.process_time()
    FeatureCache.open(folder)
    spent = time.process_time() - start
    return {"bytes_an_utterance": queued, "cpu_seconds_to_open_100_000_utterances": spent * 1e5 / count}


def padding(utterances: Sequence[Utterance]) -> Report:
    """Share of padding in batches of seconds, and in batches of as many utterances drawn at random."""
    lengths = [utterance.duration for utterance in utterances]
    batches = LengthBatches(lengths, 60.0)
    count = round(len(lengths) / len(batches))
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0)).tolist()
    random = [[lengths[index] for index in order[start : start + count]] for start in range(0, len(order), count)]
    room = sum(len(batch) * max(batch) for batch in random)
    return {
        "utterances": len(lengths),
        "batch_seconds": 60.0,
        "by_length": batches.padding_share(),
        "at_random": 1 - sum(lengths) / room,
    }


def state(folder: Path, rounds: int) -> Report:
    """Bandwidth of the cache at published sizes, utterances in random order, over that of plainly reading the files."""
    generator = torch.Generator().manual_seed(0)
    with FeatureCacheWriter(folder, {"encoder": "random"}, Storage("bf16"), num_shards=4) as writer:
        ids = [str(number) for number in range(400)]
        for shard_number in range(writer.num_shards):
            with writer.shard(shard_number) as shard:
                for id_ in ids:
                    if writer.shard_of(id_) == shard_number:
                        shard.add(id_, "0", [Features(torch.randn(120, 2048, generator=generator))])
    files = sorted(folder.glob("features-*"))
    size = sum(path.stat().st_size for path in files)
    order = torch.randperm(len(ids), generator=generator).tolist()

    def plainly() -> None:
        buffer = bytearray(1 << 20)  # used again and again: a plain read at its best
        for path in files:
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    def from_cache() -> None:
        cache = FeatureCache.open(folder)
        for index in order:
            cache[ids[index]].clone()  # the one copy that a batch is

    times = _best({"plain": plainly, "cache": from_cache}, rounds)
    rates = {name: size / 1e6 / seconds for name, seconds in times.items()}
    return {"mb_per_cpu_second": rates, "mb": size / 1e6, "ratio": rates["cache"] / rates["plain"]}


def rounding(utterances: Sequence[Utterance], folder: Path) -> Report:
    """Loss and WER of nano from each storage and each way to compute, beside those of features made on the spot."""
    loaded = load_model("nano", device="cpu")
    write_manifest(folder / "train_manifest.json", utterances)
    datasets: dict[str, UtteranceDataset] = {"computed": SpeechDataset(utterances, loaded.processor)}
    sizes = {}
    ways: dict[str, dict[str, Any]] = {name: {"dtype": name} for name in ("fp32", "bf16", "int8")}
    for name, options in (ways | {"computed in bf16": {"compute_dtype": "bf16"}}).items():
        cache = _compute(folder, output_dir=str(folder / name), **options)
        datasets[name] = CachedSpeechDataset(utterances, loaded.processor, cache)
        sizes[name] = sum(path.stat().st_size for path in (folder / name).glob("features-*"))
    losses, rates = {}, {}
    for name, dataset in datasets.items():
        batch_losses, texts = [], []
        for batch in _batches(dataset, 16):
            with torch.no_grad():
                batch_losses.append(loaded.model(**batch).loss)
            del batch["labels"]
            texts += loaded.processor.batch_decode(loaded.model.generate(**batch))
        losses[name] = float(torch.stack(batch_losses).double().mean())
        rates[name] = score([utterance.text for utterance in utterances], texts).wer
    changes = {name: abs(loss / losses["computed"] - 1) for name, loss in losses.items() if name != "computed"}
    return {"loss": losses, "relative_change": changes, "wer": rates, "bytes": sizes}


def nano_steps(utterances: Sequence[Utterance], folder: Path, rounds: int) -> Report:
    """Training steps a second of nano's adapter, batch 16, from the cache and on the fly."""
    loaded = load_model("nano", device="cpu")
    write_manifest(folder / "train_manifest.json", utterances)
    cached = CachedSpeechDataset(utterances, loaded.processor, _compute(folder))
    return _steps(loaded.model, cached, SpeechDataset(utterances, loaded.processor), 16, rounds)


def published_steps(utterances: Sequence[Utterance]) -> Report:
    """The same at published sizes with random weights, batch 2."""
    model = ASRDogeForConditionalGeneration(ASRDogeConfig())
    processor = load_model("nano", device="cpu").processor  # the same log-mel; any tokenizer will do
    computed = SpeechDataset(utterances, processor)
    with tempfile.TemporaryDirectory() as folder:
        with FeatureCacheWriter(folder, {"encoder": "random"}) as writer, writer.shard(0) as shard:
            for utterance, example in zip(utterances, (computed[n] for n in range(len(utterances))), strict=True):
                encoded = model.encode(example["input_features"][None], example["attention_mask"][None])
                shard.add(utterance.id, "0", [Features(encoded.speech_embeddings[0])])
        cached = CachedSpeechDataset(utterances, processor, FeatureCache.open(folder))
        report = _steps(model, cached, computed, 2, rounds=1)
    report["operations_by_clip_seconds"] = {seconds: _operations_of_clip(model, seconds) for seconds in (3, 10, 20)}
    return report | {"parameters": vars(model.count_parameters())}


def _operations_of_clip(model: ASRDogeForConditionalGeneration, seconds: int) -> Report:
    """Of a step on one clip, its text as long as read English's: 3.5 tokens a second."""
    labels = torch.randint(3, 1000, (1, round(3.5 * seconds)), generator=torch.Generator().manual_seed(0))
    features = torch.zeros(1, 50 * seconds, 160)
    embeddings = model.encode(features, torch.ones(1, 50 * seconds)).speech_embeddings
    return _operations(
        model, {"speech_embeddings": embeddings, "labels": labels}, {"input_features": features, "labels": labels}
    )


def _operations(
    model: ASRDogeForConditionalGeneration, cached: dict[str, Any], computed: dict[str, Any]
) -> dict[str, float]:
    """Matrix operations of a step, in billions; and their ratio.

    It is what a cache that costs nothing gives where all operations take the same time: a step from it still takes the
    language model forwards and backwards.
    """
    counts = {}
    for name, batch in (("cached", cached), ("on_the_fly", computed)):
        with FlopCounterMode(display=False) as counter:
            model(**batch).loss.backward()
        counts[name] = counter.get_total_flops() / 1e9
        model.zero_grad()
    return counts | {"ratio": counts["on_the_fly"] / counts["cached"]}


def _steps(
    model: ASRDogeForConditionalGeneration,
    cached: UtteranceDataset,
    computed: UtteranceDataset,
    batch_size: int,
    rounds: int,
) -> Report:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    model.train()

    def train_on(dataset: UtteranceDataset) -> None:
        for batch in _batches(dataset, batch_size):
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    times = _best({"cached": lambda: train_on(cached), "on_the_fly": lambda: train_on(computed)}, rounds)
    steps = -(-len(cached) // batch_size)
    seconds = sum(utterance.duration for utterance in cached.utterances)
    return {
        "steps_per_cpu_second": {name: steps / spent for name, spent in times.items()},
        "seconds_of_audio_per_cpu_second": {name: seconds / spent for name, spent in times.items()},
        "batch_size": batch_size,
        "mean_clip_seconds": seconds / len(cached),
        "ratio": times["on_the_fly"] / times["cached"],
        "operations": _operations(model, next(_batches(cached, batch_size)), next(_batches(computed, batch_size))),
    }


def _batches(dataset: UtteranceDataset, batch_size: int) -> Iterator[dict[str, Any]]:
    for start in range(0, len(dataset), batch_size):
        yield collate_examples([dataset[n] for n in range(start, min(start + batch_size, len(dataset)))])


def _best(sides: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Shortest time of each side, in seconds of the processor, so that other work on the machine counts little."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            start = time.process_time()
            side()
            times[name].append(time.process_time() - start)
    return {name: min(spent) for name, spent in times.items()}


if __name__ == "__main__":
    main()
