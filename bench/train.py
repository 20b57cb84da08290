"""Train the same model in several ways on the same data, and compare them on the test set in one table.

Example:
    python bench/train.py --table trained --data_dir ./strings/processed --output_dir ./bench_train --epochs 1

`trained` compares --train_language_model none, lora and full; `adapters` the kinds of adapter. All are between nano's
frozen encoder and its language model.
Promises: the same data, seed, batches and number of steps for every row; WER and CER are of the test manifest, by the
checkpoint that the dev set chose; a row that is already there (an interrupted run) is not trained again. Minutes are of
one processor core, training and its evaluations only, whatever else the machine does.
"""

import argparse
import json
import platform
import time
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch

from asr_doge.benchmark import ASRDogeBenchmark, BenchmarkConfig
from asr_doge.cli.console import quiet_libraries
from asr_doge.data.atomic_writing import write_atomically
from asr_doge.training.configuration import TrainConfig
from asr_doge.training.training import train

TABLES: dict[str, dict[str, dict[str, Any]]] = {
    "trained": {
        "adapter alone": {"train_language_model": "none"},
        "adapter and LoRA": {"train_language_model": "lora", "language_model_learning_rate": 5e-4},
        "adapter and all of the language model": {
            "train_language_model": "full",
            "language_model_learning_rate": 2e-4,
        },
    },
    "adapters": {
        "mlp": {"adapter_type": "mlp"},
        "linear": {"adapter_type": "linear"},
        "mlp, stack 2, norm": {"adapter_type": "mlp", "adapter_stack": 2, "adapter_output_norm": True},
        "conv": {"adapter_type": "conv"},
        "qformer, stack 2": {"adapter_type": "qformer", "adapter_stack": 2},
    },
}


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=TABLES, default="trained")
    parser.add_argument("--data_dir", type=Path, required=True, help="processed speech, with its features")
    parser.add_argument("--output_dir", type=Path, required=True, help="where the runs go")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--test_samples", type=int, default=200, help="test utterances (default 200)")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    quiet_libraries()
    rows = {name: _row(name, options, flags) for name, options in TABLES[flags.table].items()}
    print("| | trained parameters | test WER % | test CER % | exact % | dev CER % | dev loss | minutes |")
    print("|---|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        rates = " | ".join(f"{100 * row[rate]:.2f}" for rate in ("wer", "cer", "perfect_match_rate", "dev_cer"))
        print(f"| {name} | {row['trainable']:,} | {rates} | {row['dev_loss']:.3f} | {row['seconds'] / 60:.1f} |")
    print(f"\n{date.today()}, {platform.processor() or platform.machine()}")


def _row(name: str, options: dict[str, Any], flags: argparse.Namespace) -> dict[str, float]:
    folder = flags.output_dir / name.replace(",", "").replace(" ", "_")
    path = folder / "row.json"
    if path.is_file():
        row: dict[str, float] = json.loads(path.read_text())
        return row
    config = TrainConfig(
        data_dir=str(flags.data_dir),
        features_dir=str(flags.data_dir / "features"),
        output_dir=str(folder),
        speech_encoder="nano/encoder",
        language_model="nano/language_model",
        **{"adapter_hidden_dim": 256, "epochs": flags.epochs, "eval_steps": 100, "save_steps": 100, **options},
        patience=100,
        warmup_steps=50,
        warm_up="none",
        resume_from="latest" if (folder / "run.json").is_file() else None,
    )
    start = time.process_time()
    result = train(config)
    seconds = time.process_time() - start
    report = ASRDogeBenchmark(
        BenchmarkConfig(
            checkpoint_dir=str(result.best_dir),
            data_dir=str(flags.data_dir),
            output_dir=str(folder),
            max_samples=flags.test_samples,
            num_speed_runs=1,
            batch_sizes=[],
            embed_audio=False,
        )
    ).run_full_benchmark()
    row = {
        **{rate: asdict(report.accuracy)[rate] for rate in ("wer", "cer", "perfect_match_rate")},
        "trainable": report.parameters["trainable"],
        "dev_cer": result.dev_cer,
        "dev_loss": _lowest_dev_loss(folder),
        "seconds": seconds,
    }
    write_atomically(path, json.dumps(row).encode())
    return row


def _lowest_dev_loss(folder: Path) -> float:
    newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    history = json.loads((newest / "trainer_state.json").read_text())["log_history"]
    return min(entry["eval_loss"] for entry in history if "eval_loss" in entry)


if __name__ == "__main__":
    main()
