"""`asr-doge pretrain`: make the frozen parts of a small model, such as nano."""

from collections.abc import Sequence

from asr_doge.cli.arguments import parse_config
from asr_doge.cli.console import quiet_libraries
from asr_doge.training.pretraining import PretrainConfig, pretrain


def run(arguments: Sequence[str]) -> int:
    """Run the verb; returns the exit code."""
    example = "asr-doge pretrain --config configs/nano.yaml --digits_dir ./fsdd --output_dir ./nano"
    config = parse_config("pretrain", PretrainConfig, arguments, example)
    quiet_libraries()
    pretrain(config)
    print(f"speech encoder: {config.output_dir}/encoder\nlanguage model: {config.output_dir}/language_model")
    return 0
