"""`asr-doge pretrain ctc_head`: a CTC head on a frozen encoder's cached features."""

from pathlib import Path

from asr_doge.cli.console import told_how_to_resume
from asr_doge.training.ctc_head_training import CONFIG_NAME, pretrain_ctc_head
from asr_doge.training.pretraining_configuration import PretrainCTCHeadConfig
from asr_doge.training.record import RECORD_NAME


def run(config: PretrainCTCHeadConfig) -> int:
    """Run the command; returns the exit code."""
    folder = Path(config.output_dir)
    with told_how_to_resume("pretrain ctc_head", folder / RECORD_NAME, folder / CONFIG_NAME):
        result = pretrain_ctc_head(config)
    chosen = "the mean of the newest checkpoints" if result.is_average else "a checkpoint"
    rates = f"dev WER {100 * result.dev_wer:.2f} %, CER {100 * result.dev_cer:.2f} %"
    print(f"{result.steps} steps, {rates} ({chosen}): {result.best_dir}")
    return 0
