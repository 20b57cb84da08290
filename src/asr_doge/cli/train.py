"""`asr-doge train`: fit the adapter."""

import os
from contextlib import nullcontext
from pathlib import Path

from asr_doge.cli.console import told_how_to_resume
from asr_doge.training.configuration import TrainConfig
from asr_doge.training.record import RECORD_NAME
from asr_doge.training.training import CONFIG_NAME, plan, train


def run(config: TrainConfig) -> int:
    """Run the command; returns the exit code."""
    if config.plan:
        print("\n".join(plan(config).lines()))
        return 0
    prints = os.environ.get("RANK", "0") == "0"  # of several processes, one
    folder = Path(config.output_dir)
    with told_how_to_resume("train", folder / RECORD_NAME, folder / CONFIG_NAME) if prints else nullcontext():
        result = train(config)
    if prints:
        print(f"{result.steps} steps, best dev CER {100 * result.dev_cer:.2f} %: {result.best_dir}")
    return 0
