"""Load a speech encoder alone: no language model, and no memory for random weights."""

import hashlib
import json
from fnmatch import fnmatchcase
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import PreTrainedConfig
from transformers.initialization import no_init_weights
from transformers.models.auto.feature_extraction_auto import feature_extractor_class_from_name

from asr_doge.audio import SAMPLE_RATE
from asr_doge.choices import Quantization
from asr_doge.errors import CheckpointError
from asr_doge.models.checkpoints import Reference
from asr_doge.models.encoders import SpeechEncoder, encoder_family
from asr_doge.models.encoders.base import drop_weights
from asr_doge.models.quantization import quantize_linear_layers
from asr_doge.models.weights import load_weights, weights_fingerprint

FRONT_END_VERSION = 2
"""Raised whenever the same recording gives other input features, so that no cache of older ones is used."""


def load_encoder(
    reference: Reference,
    config: PreTrainedConfig,
    dtype: torch.dtype = torch.float32,
    quantization: Quantization = "none",
    *,
    skip_weights: bool = False,
) -> SpeechEncoder:
    """A frozen speech encoder with the weights of a checkpoint.

    Args:
        reference: the checkpoint, of which only the encoder's tensors are read.
        config: its configuration.
        dtype: of the weights in memory.
        quantization: see `asr_doge.models.quantization`.
        skip_weights: leave all weights on disk (see `drop_weights`).

    Raises:
        CheckpointError: no family reads it, its sampling rate is another, or a weight is missing, unexpected
            or damaged; or the family would make checkpoints that cannot be loaded.
    """
    family = encoder_family(config)
    complete_config(config, reference)
    with init_empty_weights(include_buffers=False), no_init_weights():
        encoder = family(config)
    if hasattr(encoder, "ctc_head"):
        raise CheckpointError(
            f"{family.__name__}.ctc_head needs another name: checkpoints hold heads that were trained apart under it"
        )
    if skip_weights:
        return drop_weights(encoder).eval()
    if quantization == "int8":
        quantize_linear_layers(encoder)
    load_weights(encoder, reference, family.rename_checkpoint_key, f"speech encoder '{reference.name}'", dtype)
    return encoder.requires_grad_(False).eval()


def complete_config(config: PreTrainedConfig, reference: Reference) -> None:
    """Add to an encoder's configuration what its checkpoint has in other files (vocabulary, front end).

    Raises:
        CheckpointError: no family reads it, those files are missing or unusable, or its sampling rate is not that
            at which recordings are read; or transformers does not know the family's feature extractor.
    """
    family = encoder_family(config)
    family.complete_config(config, reference)
    extractor = family.feature_extractor(config)
    if feature_extractor_class_from_name(type(extractor).__name__) is None:
        raise CheckpointError(
            f"no checkpoint on a {family.__name__} could be loaded: register {type(extractor).__name__} with"
            " AutoFeatureExtractor in models/__init__.py (CONTRIBUTING.md, Adding an encoder family)"
        )
    rate = int(extractor.sampling_rate)
    if rate != SAMPLE_RATE:
        raise CheckpointError(
            f"speech encoder '{reference.name}' takes {rate} Hz, and recordings are read at {SAMPLE_RATE} Hz: choose"
            f" an encoder of {SAMPLE_RATE} Hz"
        )


def encoder_fingerprint(reference: Reference, config: PreTrainedConfig) -> str:
    """Digest of the encoder's weights (`weights_fingerprint`)."""
    return weights_fingerprint(reference, encoder_family(config).rename_checkpoint_key)


def feature_source(fingerprint: str | None, config: PreTrainedConfig, extractor: Any) -> dict[str, str | int | None]:
    """Everything that cached speech embeddings depend on besides the audio; another value means other embeddings.

    Args:
        fingerprint: of the encoder's weights.
        config: the encoder's; the same weights with another window or context are another encoder.
        extractor: the encoder's feature extractor.
    """
    return {
        "encoder_fingerprint": fingerprint,
        "encoder_settings": _digest(_read_settings(config)),
        "front_end_settings": _digest(settings(extractor.to_dict())),
        "front_end_version": FRONT_END_VERSION,
    }


_UNREAD_SETTINGS = (
    "*dropout*",
    "*layerdrop*",
    "initializer_*",
    "apply_spec_augment",
    "mask_time_*",
    "mask_feature_*",
    "*_token_id",
    "*_token_ids",
    "*_token_index",
    "use_cache",
    "output_*",
    "return_dict",
    "gradient_checkpointing",
    "id2label",
    "label2id",
    "problem_type",
    "is_encoder_decoder",
    "tie_word_embeddings",
    "init_std",
    "classifier_*",
)
"""Patterns of names of settings that no encoder reads outside of training; a family adds its own."""


def _read_settings(config: PreTrainedConfig) -> Any:
    """The settings on which an encoder's embeddings may depend besides its weights."""
    unread = (*_UNREAD_SETTINGS, *encoder_family(config).unread_settings)

    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            name: read(part)
            for name, part in value.items()
            if not any(fnmatchcase(name, pattern) for pattern in unread)
        }

    return read(settings(config.to_dict()))


_NO_SETTINGS = {"_name_or_path", "architectures", "dtype", "processor_class", "torch_dtype", "transformers_version"}


def settings(value: Any) -> Any:
    """A configuration's dictionary without its path, its author's versions and the type of its stored weights."""
    if isinstance(value, dict):
        return {str(name): settings(part) for name, part in value.items() if name not in _NO_SETTINGS}
    return [settings(part) for part in value] if isinstance(value, list | tuple) else value


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
