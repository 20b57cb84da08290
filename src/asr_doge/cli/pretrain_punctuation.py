"""`asr-doge pretrain punctuation`: a small model that restores case and punctuation, of text alone."""

from asr_doge.training.pretraining_configuration import PretrainPunctuationConfig
from asr_doge.training.pretraining_punctuation import pretrain_punctuation


def run(config: PretrainPunctuationConfig) -> int:
    """Run the command; returns the exit code."""
    results = pretrain_punctuation(config)
    print(
        f"{results['parameters']:,} parameters; on sentences kept out, marks: {100 * results['mark_precision']:.0f} %"
        f" precision, {100 * results['mark_recall']:.0f} % recall; words with the right case:"
        f" {100 * results['case_accuracy']:.1f} %: {config.output_dir}/punctuation"
    )
    return 0
