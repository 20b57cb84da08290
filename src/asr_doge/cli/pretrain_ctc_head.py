"""`asr-doge pretrain ctc_head`: a CTC head on a frozen encoder's cached features."""

import shlex
import sys
from pathlib import Path

from asr_doge.cli.console import quiet_libraries
from asr_doge.training.ctc_head_configuration import PretrainCTCHeadConfig
from asr_doge.training.ctc_head_training import CONFIG_NAME, pretrain_ctc_head
from asr_doge.training.record import RECORD_NAME


def run(config: PretrainCTCHeadConfig) -> int:
    """Run the verb; returns the exit code."""
    quiet_libraries()
    try:
        result = pretrain_ctc_head(config)
    except KeyboardInterrupt:
        if (Path(config.output_dir) / RECORD_NAME).is_file():
            settings = str(Path(config.output_dir) / CONFIG_NAME)
            command = ["asr-doge", "pretrain", "ctc_head", "--config", settings, "--resume_from", "latest"]
            print(f"\nstopped; go on with: {shlex.join(command)}", file=sys.stderr)
        raise
    chosen = "the mean of the newest checkpoints" if result.is_average else "a checkpoint"
    rates = f"dev WER {100 * result.dev_wer:.2f} %, CER {100 * result.dev_cer:.2f} %"
    print(f"{result.steps} steps, {rates} ({chosen}): {result.best_dir}")
    return 0
