"""Load the frozen parts that a checkpoint points to, and refuse them if they have changed.

Promises: a part that has moved, or whose weights changed since training, gives one line that says which.
It does not assemble a model.
"""

from collections.abc import Callable

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from asr_doge.choices import Quantization
from asr_doge.errors import CheckpointError
from asr_doge.models.checkpoints import Reference, find_model, load_model_config
from asr_doge.models.configuration_asr_doge import ASRDogeConfig
from asr_doge.models.ctc_head_checkpoints import CTCHeadConfig
from asr_doge.models.encoders import ENCODERS, SpeechEncoder
from asr_doge.models.encoders.loading import encoder_fingerprint, load_encoder
from asr_doge.models.fetching import can_be_fetched, find_or_fetch
from asr_doge.models.language_model import load_language_model
from asr_doge.models.weights import weights_fingerprint


def load_asr_doge_config(reference: Reference) -> ASRDogeConfig:
    """The configuration of an ASR-Doge checkpoint.

    Raises:
        CheckpointError: there is none, or it is of another kind of model.
    """
    config = load_model_config(reference)
    if not isinstance(config, ASRDogeConfig):
        raise CheckpointError(
            f"'{reference.name}' is a '{config.model_type}' model, not an ASR-Doge checkpoint; {_use_of(config)}"
        )
    return config


WITHOUT_TEXT = (
    "it is a speech encoder without a CTC head, which gives no text by itself: train an adapter on it (asr-doge train"
    " --speech_encoder) or a CTC head (asr-doge pretrain ctc_head --speech_encoder)"
)


def _use_of(config: PreTrainedConfig) -> str:
    """Advice on how another kind of model can be used here."""
    if isinstance(config, CTCHeadConfig):
        return "it is a CTC head without a language model, for --decoder ctc"
    family = ENCODERS.get(config.model_type)
    if family is None:
        return "to train an adapter on it give it as --language_model"
    if family.has_ctc:
        return "to train an adapter on it give it as --speech_encoder; for the text of its CTC head, --decoder ctc"
    return WITHOUT_TEXT


def load_frozen_encoder(
    config: ASRDogeConfig | CTCHeadConfig,
    dtype: torch.dtype = torch.float32,
    quantization: Quantization = "none",
    *,
    skip_weights: bool = False,
) -> SpeechEncoder:
    """The speech encoder that a checkpoint points to; with `skip_weights`, without its weights.

    Raises:
        CheckpointError: it cannot be found or loaded, or has changed since its fingerprint was taken.
    """
    name = str(config.speech_encoder)
    reference = _find_part("speech_encoder", name, find_or_fetch, config.speech_encoder_revision)
    found = encoder_fingerprint(reference, config.encoder_config)
    config.speech_encoder_fingerprint = _same_fingerprint(reference, config.speech_encoder_fingerprint, found)
    return load_encoder(reference, config.encoder_config, dtype, quantization, skip_weights=skip_weights)


def load_frozen_language_model(
    config: ASRDogeConfig, dtype: torch.dtype = torch.float32, quantization: Quantization = "none"
) -> PreTrainedModel:
    """The language model that a checkpoint points to.

    With `quantization` it still has floating-point weights if some of it was trained: the trained weights come from the
    checkpoint, and can be quantized only then.

    Raises:
        CheckpointError: it cannot be found or loaded, or has changed since its fingerprint was taken.
    """
    name = str(config.language_model)
    reference = _find_part("language_model", name, find_model, config.language_model_revision)
    found = weights_fingerprint(reference, lambda key: key)
    config.language_model_fingerprint = _same_fingerprint(reference, config.language_model_fingerprint, found)
    is_frozen = config.train_language_model == "none"
    return load_language_model(reference, config.text_config, dtype, quantization if is_frozen else "none")


def _find_part(field: str, name: str, find: Callable[[str, str | None], Reference], revision: str | None) -> Reference:
    """A frozen part of a checkpoint; it may have moved since, or not have been fetched yet."""
    try:
        return find(name, revision)
    except CheckpointError as error:
        if can_be_fetched(name):
            raise
        raise CheckpointError(
            f"the checkpoint's {field} is not at '{name}'; bring it back, or correct {field} in config.json"
        ) from error


def _same_fingerprint(reference: Reference, expected: str | None, found: str) -> str:
    if expected is not None and expected != found:
        raise CheckpointError(
            f"the weights of '{reference.name}' are not those this checkpoint was trained with"
            f" (fingerprint {found}, expected {expected}); restore them or train again"
        )
    return found
