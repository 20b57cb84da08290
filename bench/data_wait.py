"""What a training step from the feature cache waits for: its data, and at the start, the model's parts.

    python bench/data_wait.py                                  # nano's parts, 64 synthetic strings: a minute
    python bench/data_wait.py --utterances 32 --latency_ms 30
    python bench/data_wait.py --published                      # only the start, at published sizes: 4 GB of disk

Promises: the parts, the dataset and the batches are those of `asr-doge train`; the same batches are read from a cache
on this disk, and from one elsewhere, whose every read is answered after `--latency_ms`: in turn with the steps, and
ahead of them. Data time is what a step waits, by the clock; its share is that of data and step. Start-up is processor
time, with the encoder's weights and without; at published sizes, with random weights, it is a run of `asr-doge train`
in a process of its own, from the start of Python to the first step. It says nothing of accuracy or of a GPU.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import torch
from speed import make_checkpoint
from torch.utils.data import DataLoader

from asr_doge.data.configuration import ProcessConfig
from asr_doge.data.digits import split_voices, synthesized_clips, write_clips
from asr_doge.data.feature_cache_writer import FeatureCacheWriter
from asr_doge.data.feature_shards import Features
from asr_doge.data.manifest import Utterance, read_manifest, write_manifest
from asr_doge.data.processing import process_corpus
from asr_doge.data.stores import RemoteStore
from asr_doge.inference.configuration import FeaturesConfig
from asr_doge.inference.features import compute_features
from asr_doge.models import LoadedModel, assemble_model
from asr_doge.models.encoders.loading import feature_source
from asr_doge.training.configuration import TrainConfig
from asr_doge.training.ctc_trainer import CTCTrainer
from asr_doge.training.examples import NamedExamples, ReadAheadLoader, collate_named
from asr_doge.training.inputs import open_dataset
from asr_doge.training.trainer import SpeechTrainer
from asr_doge.training.training import train

ENCODER, LANGUAGE_MODEL = "nano/encoder", "nano/language_model"
BATCH = 16


def make_cache(folder: Path, utterances: int) -> Path:
    """Processed synthetic speech with its features."""
    write_clips(folder / "corpus", "train", synthesized_clips(utterances, split_voices().unseen, seed=0))
    processed = folder / "processed"
    process_corpus(ProcessConfig(folder / "corpus", processed, "manifest", dev_split="", test_split=""))
    compute_features(FeaturesConfig(str(processed), speech_encoder=ENCODER, device="cpu"))
    return processed


def assembled(skip_encoder_weights: bool) -> tuple[LoadedModel, float]:
    """The parts, and the processor's seconds that loading took."""
    start = time.process_time()
    loaded = assemble_model(ENCODER, LANGUAGE_MODEL, device="cpu", skip_encoder_weights=skip_encoder_weights)
    return loaded, time.process_time() - start


def seconds_of_step(loaded: LoadedModel, batch: dict[str, Any]) -> float:
    """Seconds on the clock of a forward and a backward pass."""
    start = time.perf_counter()
    given = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    loaded.model(**given).loss.backward()
    return time.perf_counter() - start


def measure(
    loaded: LoadedModel, processed: Path, folder: str, loader: type[DataLoader[Any]], reads_at_once: int | None
) -> dict[str, float]:
    """Seconds that a step waits for its batch, and seconds that it takes."""
    config = TrainConfig(str(processed), features_dir=folder, device="cpu")
    dataset = open_dataset(config, read_manifest(processed / "train_manifest.json"), loaded, training=True)
    if reads_at_once is not None:
        dataset.reads_at_once = reads_at_once
    batches: DataLoader[Any] = loader(NamedExamples(dataset), batch_size=BATCH, collate_fn=collate_named)
    loaded.model.train()
    data = step = 0.0
    rows = iter(batches)
    for _ in range(len(batches)):
        start = time.perf_counter()
        batch = next(rows)
        data += time.perf_counter() - start
        step += seconds_of_step(loaded, batch)
    return {
        "data_seconds": data / len(batches),
        "step_seconds": step / len(batches),
        "data_share": data / (data + step),
    }


def published_run(folder: Path, utterances: int = 8, seconds: float = 10.0) -> TrainConfig:
    """A run of the published pair, with random weights, on a cache of random embeddings."""
    make_checkpoint(folder, small=False, stored=torch.float32)
    parts = str(folder / "encoder"), str(folder / "language_model")
    loaded = assemble_model(*parts, device="cpu", skip_encoder_weights=True)
    config = loaded.model.config
    source = feature_source(
        config.speech_encoder_fingerprint, config.encoder_config, loaded.processor.feature_extractor
    )
    # The recordings need not be on this machine.
    made = [
        Utterance(str(n), folder / f"{n}.wav", "one two three", "one two three", seconds) for n in range(utterances)
    ]
    for split in ("train", "dev"):
        write_manifest(folder / f"{split}_manifest.json", made)
    with FeatureCacheWriter(folder / "features", source) as writer, writer.shard(0) as shard:
        for utterance in made:
            rows = torch.randn(round(10 * seconds), loaded.model.encoder.hidden_size)
            shard.add(utterance.id, "0", [Features(rows)])
    return TrainConfig(
        data_dir=str(folder),
        output_dir=str(folder / "run"),
        speech_encoder=parts[0],
        language_model=parts[1],
        batch_size=2,
        device="cpu",
    )


def first_step(config: TrainConfig) -> None:
    """Train until the first step would begin, print the seconds of this process until then, and end it."""

    def end(*_: Any, **__: Any) -> None:
        clock = time.time() - psutil.Process().create_time()
        print(json.dumps({"first_step_seconds": clock, "first_step_cpu_seconds": time.process_time()}), flush=True)
        os._exit(0)

    with patch.object(SpeechTrainer, "training_step", end), patch.object(CTCTrainer, "training_step", end):
        train(config)


def main() -> None:
    """Measure and print, a line of JSON for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=64)
    parser.add_argument("--latency_ms", type=float, default=30.0)
    parser.add_argument("--published", action="store_true", help="the start at published sizes, and nothing else")
    parser.add_argument("--first_step", type=json.loads, help=argparse.SUPPRESS)  # settings, in a process of its own
    options = parser.parse_args()
    if options.first_step:
        first_step(TrainConfig(**options.first_step))
    if options.published:
        with tempfile.TemporaryDirectory() as folder:
            settings = json.dumps(asdict(published_run(Path(folder))))
            subprocess.run([sys.executable, __file__, "--first_step", settings], check=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        processed = make_cache(Path(folder), options.utterances)
        assembled(True)  # warm
        _, whole = assembled(False)
        loaded, without = assembled(True)
        print(json.dumps({"start_up_cpu_seconds": {"with the encoder": whole, "without": without}}), flush=True)
        here = str(processed / "features")
        read = RemoteStore.read

        def late(store: RemoteStore, name: str, start: int, stop: int) -> bytes:
            time.sleep(options.latency_ms / 1000)
            return read(store, name, start, stop)

        with patch.object(RemoteStore, "read", late):  # a network that is slow
            for name, place, loader, at_once in (
                ("here, in turn", here, DataLoader, None),
                ("here", here, ReadAheadLoader, None),
                ("elsewhere, in turn, one by one", f"file://{here}", DataLoader, 1),
                ("elsewhere", f"file://{here}", ReadAheadLoader, None),
            ):
                figures = measure(loaded, processed, place, loader, at_once)
                print(
                    json.dumps({"cache": name} | {key: round(value, 4) for key, value in figures.items()}), flush=True
                )


if __name__ == "__main__":
    main()
