"""`asr-doge train`: fit the adapter."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint

from asr_doge.cli.arguments import parse_config
from asr_doge.cli.console import quiet_libraries
from asr_doge.training.training import TrainConfig, train


def run(arguments: Sequence[str]) -> int:
    """Run the verb; returns the exit code."""
    example = "asr-doge train --data_dir ./processed --features_dir ./processed/features --output_dir ./checkpoints"
    config = parse_config("train", TrainConfig, arguments, example)
    quiet_libraries()
    try:
        result = train(config)
    except KeyboardInterrupt:
        if Path(config.output_dir).is_dir() and get_last_checkpoint(config.output_dir):
            resume = () if config.resume_from == "latest" else ("--resume_from", "latest")
            print(f"\nstopped; go on with: {shlex.join(['asr-doge', 'train', *arguments, *resume])}", file=sys.stderr)
        raise
    print(f"{result.steps} steps, best dev CER {100 * result.dev_cer:.2f} %: {result.best_dir}")
    return 0
