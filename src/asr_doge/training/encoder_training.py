"""The `pretrain encoder` command: train a small speech encoder from nothing, by CTC on generated spoken digits.

Promises: every architecture gets the same clips in the same order (`PretrainingSpeech`, which depends only on the seed)
and is evaluated on the same digit strings of a speaker not in training; the folder it writes is a speech encoder like
any other. A killed run continues from its last checkpoint. The architectures differ in one way: log-mel features are
masked in training, waveforms are not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import EncodecConfig, Trainer, set_seed
from transformers.utils import SAFE_WEIGHTS_NAME

from asr_doge.audio import SAMPLE_RATE
from asr_doge.data.digits import DigitClip, read_fsdd, recorded_clips
from asr_doge.decoding.ctc import ctc_greedy_texts
from asr_doge.models.atomic_folder import atomic_folder
from asr_doge.models.encoders.granite_speech import GraniteSpeechEncoder
from asr_doge.models.encoders.seanet import SEANetSpeechEncoder
from asr_doge.text.scoring import Scores, score
from asr_doge.training.arguments import pretraining_arguments, train_or_resume
from asr_doge.training.ctc_loss import ctc_loss
from asr_doge.training.pretraining import build_encoder
from asr_doge.training.pretraining_configuration import PretrainConfig, PretrainEncoderConfig
from asr_doge.training.pretraining_speech import PretrainingSpeech, collate_features

SmallEncoder = GraniteSpeechEncoder | SEANetSpeechEncoder

SEANET_CHARACTERS = " 'abcdefghijklmnopqrstuvwxyz"
_BATCH = 16  # dev strings that are read at once


@dataclass(frozen=True)
class PretrainedEncoder:
    """Result of a run.

    Attributes:
        folder: of the encoder.
        parameters: of it, CTC head included.
        scores: on the dev strings.
    """

    folder: Path
    parameters: int
    scores: Scores


def pretrain_encoder(config: PretrainEncoderConfig) -> PretrainedEncoder:
    """Train, evaluate and write an encoder.

    Raises:
        DataError: recordings are missing.
    """
    recordings = read_fsdd(Path(config.digits_dir), takes="train", without=[config.dev_speaker])
    dev_recordings = read_fsdd(Path(config.digits_dir), only=[config.dev_speaker])
    set_seed(config.seed)
    encoder = new_encoder(config)
    clips = PretrainingSpeech(
        config.steps * config.batch_size,
        config.batch_size,
        recordings,
        [],
        0.0,
        config.seed,
        waveforms=config.architecture == "seanet",
    )
    _train(config, encoder, clips)
    encoder.eval()
    scores = dev_scores(encoder, list(recorded_clips(config.dev_strings, dev_recordings, config.seed)))
    folder = Path(config.output_dir) / "encoder"
    with atomic_folder(folder) as partial:
        encoder.config.save_pretrained(partial)
        weights = {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}
        save_file(weights, partial / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
    return PretrainedEncoder(folder, sum(weight.numel() for weight in encoder.parameters()), scores)


def new_encoder(config: PretrainEncoderConfig) -> SmallEncoder:
    """An encoder with random weights and a CTC head of characters."""
    if config.architecture == "conformer":
        sizes = PretrainConfig(
            output_dir="", digits_dir="", encoder_hidden_dim=config.hidden_dim, encoder_layers=config.layers
        )
        return build_encoder(sizes)
    settings: dict[str, Any] = {
        "sampling_rate": SAMPLE_RATE,
        "pad_mode": "constant",  # see `asr_doge.models.encoders.seanet`
        "num_filters": config.num_filters,
        "hidden_size": config.hidden_dim,
        "codebook_dim": config.hidden_dim,
        "ctc_tokens": list(SEANET_CHARACTERS),
    }
    return SEANetSpeechEncoder(EncodecConfig(**settings))


class _CTCTraining(nn.Module):
    """An encoder with the CTC loss of its head."""

    def __init__(self, encoder: SmallEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self, input_features: Tensor, input_lengths: Tensor, labels: Tensor, label_lengths: Tensor
    ) -> dict[str, Tensor]:
        """The loss of a batch."""
        output = self.encoder(input_features, input_lengths, return_ctc_logits=True)
        return {"loss": ctc_loss(output.ctc_logits, output.ctc_lengths, labels, label_lengths)}


def _train(config: PretrainEncoderConfig, encoder: SmallEncoder, clips: PretrainingSpeech) -> None:
    def collate(examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        ids = [torch.tensor(encoder.ctc_ids(example["text"]), dtype=torch.long) for example in examples]
        return collate_features(examples) | {
            "labels": pad_sequence(ids, batch_first=True),
            "label_lengths": torch.tensor([len(row) for row in ids]),
        }

    arguments = pretraining_arguments(
        Path(config.output_dir),
        config.steps,
        config.batch_size,
        config.learning_rate,
        config.seed,
        dataloader_num_workers=config.num_workers,
    )
    trainer = Trainer(_CTCTraining(encoder), arguments, data_collator=collate, train_dataset=clips)
    train_or_resume(trainer)


def dev_scores(encoder: SmallEncoder, clips: Sequence[DigitClip]) -> Scores:
    """Scores of the encoder's CTC head on digit strings."""
    extractor = type(encoder).feature_extractor(encoder.config)
    device = next(encoder.parameters()).device
    hypotheses: list[str] = []
    for start in range(0, len(clips), _BATCH):
        batch = extractor([clip.waveform for clip in clips[start : start + _BATCH]], sampling_rate=SAMPLE_RATE)
        with torch.no_grad():
            lengths = batch["attention_mask"].sum(dim=1).to(device)
            output = encoder(batch["input_features"].to(device), lengths, return_ctc_logits=True)
        hypotheses += ctc_greedy_texts(encoder, output.ctc_logits, output.ctc_lengths)
    return score([" ".join(clip.digits) for clip in clips], hypotheses)
