"""Store a trained CTC head in a folder, which is then a speech encoder like any other: `--speech_encoder FOLDER`.

Promises: the folder has the head's weights and points to the encoder's, whose fingerprint is compared on loading; it is
written completely or not at all. Every command uses `find_speech_encoder` to find the encoder that a flag names.
It does not know how a head is trained.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_NAME

from asr_doge.choices import EncoderWindow
from asr_doge.models.atomic_folder import atomic_folder
from asr_doge.models.checkpoints import Reference, find_model, load_model_config
from asr_doge.models.configuration_asr_doge import sub_config
from asr_doge.models.ctc_head import HeadedEncoder
from asr_doge.models.encoders import encoder_family, set_encoder_window
from asr_doge.models.encoders.loading import complete_config
from asr_doge.models.fetching import find_or_fetch
from asr_doge.models.weights import check_keys, check_shapes, read_weights


class CTCHeadConfig(PreTrainedConfig):
    """Configuration of a CTC head and of the encoder that it was trained on.

    Args:
        encoder_config: of the speech encoder, its window included.
        speech_encoder, speech_encoder_revision, speech_encoder_fingerprint: as in `ASRDogeConfig`.
        ctc_head: of `CTCHeadSettings`.
    """

    model_type = "asr_doge_ctc_head"
    sub_configs = {"encoder_config": AutoConfig}

    encoder_config: PreTrainedConfig = None  # type: ignore[assignment]  # None only until __post_init__
    speech_encoder: str | None = None
    speech_encoder_revision: str | None = None
    speech_encoder_fingerprint: str | None = None
    ctc_head: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Convert the encoder's configuration from its dictionary."""
        if self.encoder_config is not None:
            self.encoder_config = sub_config(self.encoder_config)
        super().__post_init__(**kwargs)


@dataclass(frozen=True)
class FoundEncoder:
    """A speech encoder that a flag names.

    Attributes:
        reference: the encoder's weights.
        config: the encoder's configuration.
        fingerprint: expected digest of those weights, if a head was trained on them.
        head: the CTC head's folder and configuration, if the flag names one.
    """

    reference: Reference
    config: PreTrainedConfig
    fingerprint: str | None = None
    head: tuple[Reference, CTCHeadConfig] | None = None

    @property
    def ctc_head(self) -> dict[str, Any] | None:
        """Settings of the head, if there is one."""
        return self.head[1].ctc_head if self.head is not None else None


def find_speech_encoder(name: str | Path, window: EncoderWindow | None = None) -> FoundEncoder:
    """The encoder of a published model, or that of a CTC head's folder together with the head.

    Args:
        name: hub id, local folder or bundled name.
        window: see `set_encoder_window`.

    Raises:
        CheckpointError: it cannot be found, or no family supports it.
        ConfigError: the family has no such window.
    """
    reference = find_or_fetch(name)
    config = load_model_config(reference)
    if not isinstance(config, CTCHeadConfig):
        set_encoder_window(config, window, encoder_family(config))
        complete_config(config, reference)
        return FoundEncoder(reference, config)
    set_encoder_window(config.encoder_config, window, encoder_family(config.encoder_config))
    encoder = find_or_fetch(str(config.speech_encoder), config.speech_encoder_revision)
    return FoundEncoder(encoder, config.encoder_config, config.speech_encoder_fingerprint, (reference, config))


def is_ctc_head(name: str | Path) -> bool:
    """Whether a name is that of a CTC head's folder, which has no language model.

    Raises:
        CheckpointError: there is no such model, or it has no usable config.json.
    """
    return isinstance(load_model_config(find_model(name)), CTCHeadConfig)


def load_head_weights(encoder: HeadedEncoder, reference: Reference, prefix: str = "") -> None:
    """Load the weights of a CTC head, whose names begin with `prefix`, into an encoder's head of the same settings.

    Raises:
        CheckpointError: some are missing, unexpected, of another shape, or damaged.
    """
    weights = read_weights(reference, lambda key: key.removeprefix(prefix) if key.startswith(prefix) else None)
    head, source = encoder.ctc_head, f"CTC head '{reference.name}'"
    check_keys(head.state_dict().keys(), weights.keys(), source)
    check_shapes(head.state_dict(), weights, source)
    head.load_state_dict(weights)


def save_head(folder: Path, config: CTCHeadConfig, weights: dict[str, torch.Tensor]) -> None:
    """Write a CTC head's folder, completely or not at all; an existing one is replaced."""
    with atomic_folder(folder) as partial:
        config.save_pretrained(partial)
        ordered = {name: weights[name].contiguous() for name in sorted(weights)}
        save_file(ordered, partial / SAFE_WEIGHTS_NAME, {"format": "pt"})
