"""`asr-doge pretrain language_model`: a small language model of text alone."""

from asr_doge.training.pretraining_configuration import PretrainLanguageModelConfig
from asr_doge.training.pretraining_language_model import pretrain_language_model


def run(config: PretrainLanguageModelConfig) -> int:
    """Run the command; returns the exit code."""
    results = pretrain_language_model(config)
    print(
        f"{results['parameters']} parameters, dev loss {results['dev_loss']:.3f} a token, perplexity"
        f" {results['dev_perplexity']:.0f} a word: {config.output_dir}/language_model"
    )
    return 0
