"""`asr-doge train`: fit the adapter."""

import os
import shlex
import sys
from pathlib import Path

from asr_doge.cli.console import quiet_libraries
from asr_doge.training.configuration import TrainConfig
from asr_doge.training.record import RECORD_NAME
from asr_doge.training.training import CONFIG_NAME, plan, train


def run(config: TrainConfig) -> int:
    """Run the verb; returns the exit code."""
    quiet_libraries()
    if config.plan:
        print("\n".join(plan(config).lines()))
        return 0
    speaks = os.environ.get("RANK", "0") == "0"  # of several processes, one
    try:
        result = train(config)
    except KeyboardInterrupt:
        if speaks and (Path(config.output_dir) / RECORD_NAME).is_file():
            settings = str(Path(config.output_dir) / CONFIG_NAME)
            command = ["asr-doge", "train", "--config", settings, "--resume_from", "latest"]
            print(f"\nstopped; go on with: {shlex.join(command)}", file=sys.stderr)
        raise
    if speaks:
        print(f"{result.steps} steps, best dev CER {100 * result.dev_cer:.2f} %: {result.best_dir}")
    return 0
