"""Check, before a run begins, for invalid flags and combinations of flags, and for texts that are too long.

Promises: each error is one line that names the flag or the utterance. It loads nothing and reads no file.
"""

import math
from collections.abc import Sequence
from importlib.util import find_spec

from asr_doge.data.manifest import Utterance
from asr_doge.errors import ConfigError, DataError
from asr_doge.models import LoadedModel
from asr_doge.training.configuration import TrainConfig
from asr_doge.training.processes import process_count, uses_fsdp
from asr_doge.training.tracking import uses_wandb

_POSITIVE = (
    *("adapter_hidden_dim", "adapter_stack", "batch_size", "epochs", "eval_samples", "eval_steps", "patience"),
    *("gradient_accumulation_steps", "lora_rank", "save_steps", "train_encoder_layers"),
)
_NOT_NEGATIVE = (
    *("learning_rate", "language_model_learning_rate", "encoder_learning_rate", "warmup_steps", "weight_decay"),
    *("embedding_noise", "lora_alpha", "lora_dropout", "max_grad_norm", "max_unreadable", "num_workers"),
)


def check_flags(config: TrainConfig) -> None:
    """Refuse invalid numbers before anything is loaded."""
    for name in _POSITIVE:
        if getattr(config, name) <= 0:
            raise ConfigError(f"--{name} {getattr(config, name)} cannot be used: it must be more than 0")
    for name in _NOT_NEGATIVE:
        if (getattr(config, name) or 0) < 0:
            raise ConfigError(f"--{name} {getattr(config, name)} cannot be used: it must not be negative")
    if config.save_steps % config.eval_steps:
        raise ConfigError(f"save_steps ({config.save_steps}) must be a multiple of eval_steps ({config.eval_steps})")
    if not 0 < config.pct_start < 1:
        raise ConfigError(
            f"--pct_start {config.pct_start} cannot be used: it must be a share of the steps, above 0 and below 1"
        )
    if config.batch_seconds is not None and config.batch_seconds <= 0:
        raise ConfigError(f"--batch_seconds {config.batch_seconds} cannot be used: it must be more than 0")
    _check_variations(config)
    shares = process_count() * config.gradient_accumulation_steps
    if config.batch_seconds is None and config.batch_size % shares:
        raise ConfigError(
            f"--batch_size {config.batch_size} cannot be cut into {shares} equal parts ({process_count()} processes ×"
            f" --gradient_accumulation_steps {config.gradient_accumulation_steps}): give a multiple of {shares}"
        )
    if uses_fsdp(config) and process_count() == 1:
        raise ConfigError("--fsdp shares weights out over several processes: start them by torchrun, or leave it out")
    if uses_fsdp(config) and config.vocabulary != "all":
        raise ConfigError("--vocabulary texts needs the whole output layer in one process: leave out it or --fsdp")
    if uses_wandb(config) and find_spec("wandb") is None:
        raise ConfigError("--wandb_project needs the package wandb: pip install 'asr-doge[wandb]', or give --no_wandb")


def _check_variations(config: TrainConfig) -> None:
    """Refuse augmentation that the source of the features does not support."""
    if not 0 <= config.frame_dropping < 1:
        raise ConfigError(f"--frame_dropping {config.frame_dropping} cannot be used: choose a share from 0 to below 1")
    if config.augment and config.features_dir:
        raise ConfigError(
            "--augment varies recordings, and a feature cache holds none: make copies by 'asr-doge features"
            ' --augment_copies\', or give --features_dir ""'
        )
    for name in ("frame_dropping", "embedding_noise"):
        if getattr(config, name) and config.train_encoder != "none":
            raise ConfigError(
                f"--{name} varies cached features, and --train_encoder {config.train_encoder} uses none: leave one of"
                " them out"
            )
        if getattr(config, name) and not config.features_dir:
            raise ConfigError(f"--{name} varies cached features: run 'asr-doge features' first")


def require_positions(loaded: LoadedModel, utterances: Sequence[Utterance]) -> None:
    """Refuse utterances that, with prompt, speech and text, are longer than the language model supports.

    Raises:
        DataError: there are some; the message names the first.
    """
    config = loaded.model.config
    limit = getattr(config.text_config, "max_position_embeddings", None) or math.inf
    rate = loaded.model.encoder.frame_rate_hz / config.adapter_stack
    languages = {utterance.language for utterance in utterances}
    prompt = {language: len(loaded.processor.prompt_ids(language)) for language in languages}
    too_long = []
    for utterance in utterances:
        before = prompt[utterance.language] + math.ceil(utterance.duration * rate)
        if before + len(utterance.text.encode()) < limit:  # a token has at least one byte; counting tokens takes longer
            continue
        needed = before + len(loaded.processor.text_ids(utterance.text))
        if needed > limit:
            too_long.append(f"{utterance.id!r}, {needed:,}")
    if too_long:
        raise DataError(
            f"{len(too_long)} of {len(utterances):,} utterances do not fit into the {limit:,} positions of the language"
            f" model (the first: {too_long[0]}): leave them out of the manifest, or cut them"
        )
