"""`asr-doge pretrain encoder`: a small speech encoder with CTC, from nothing."""

from asr_doge.training.encoder_training import pretrain_encoder
from asr_doge.training.pretraining_configuration import PretrainEncoderConfig


def run(config: PretrainEncoderConfig) -> int:
    """Run the command; returns the exit code."""
    result = pretrain_encoder(config)
    rates = f"WER {100 * result.scores.wer:.2f} %, CER {100 * result.scores.cer:.2f} %"
    print(
        f"{config.architecture}, {result.parameters / 1e6:.2f}M parameters, {config.steps} steps: {rates} on"
        f" {config.dev_strings} digit strings of {config.dev_speaker}; speech encoder: {result.folder}"
    )
    return 0
