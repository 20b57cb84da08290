"""The parameters of a model: how many there are, and which of them training updates.

Promises: counts work on the meta device, and include weights that were left on disk.
It does not train.
"""

from dataclasses import dataclass

from torch import nn

from asr_doge.models.configuration_asr_doge import ASRDogeConfig
from asr_doge.models.encoders import SpeechEncoder
from asr_doge.models.encoders.base import unloaded_parameters


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of a model by part; `trainable` are those an optimizer would update."""

    encoder: int
    adapter: int
    language_model: int
    trainable: int

    @property
    def total(self) -> int:
        """All parameters."""
        return self.encoder + self.adapter + self.language_model

    @property
    def trainable_share(self) -> float:
        """Trainable parameters as a fraction of all."""
        return self.trainable / self.total


def count_parameters(module: nn.Module) -> int:
    """Parameters of a module, whether they are loaded or not."""
    return sum(parameter.numel() for parameter in module.parameters()) + unloaded_parameters(module)


def trained_encoder_weights(encoder: SpeechEncoder, config: ASRDogeConfig) -> set[str]:
    """Names of the encoder's weights, within the model, that training updates."""
    layers = encoder.last_layers(config.train_encoder_layers) if config.train_encoder == "last_k" else []
    last = {id(parameter) for layer in layers for parameter in layer.parameters()}
    return {
        f"encoder.{name}"
        for name, parameter in encoder.named_parameters()
        if id(parameter) in last or (config.train_encoder == "lora" and ".lora_" in name)
    }
