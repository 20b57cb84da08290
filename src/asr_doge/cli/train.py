"""`asr-doge train`: fit the adapter."""

from collections.abc import Sequence

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
        print(f"\nstopped; go on with: asr-doge train … --resume_from latest --output_dir {config.output_dir}")
        raise
    print(f"{result.steps} steps, best dev CER {100 * result.dev_cer:.2f} %: {result.best_dir}")
    return 0
