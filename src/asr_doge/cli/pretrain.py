"""`asr-doge pretrain`: make the frozen parts of a small model, such as nano."""

from asr_doge.training.pretraining import pretrain
from asr_doge.training.pretraining_configuration import PretrainConfig


def run(config: PretrainConfig) -> int:
    """Run the command; returns the exit code."""
    pretrain(config)
    print(f"speech encoder: {config.output_dir}/encoder\nlanguage model: {config.output_dir}/language_model")
    return 0
