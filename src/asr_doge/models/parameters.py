"""The parameters of a model: how many there are, which of them training updates, and the model without such updates.

Promises: counts work on the meta device, and include weights that were left on disk.
It does not train.
"""

import copy
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from torch import nn
from transformers import PreTrainedModel

from asr_doge.errors import ConfigError, first_line
from asr_doge.models.configuration_asr_doge import ASRDogeConfig
from asr_doge.models.encoders import SpeechEncoder
from asr_doge.models.encoders.base import shelved_parameters

Part = TypeVar("Part", bound=nn.Module)


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
    return sum(parameter.numel() for parameter in module.parameters()) + shelved_parameters(module)


def add_lora(part: nn.Module, options: dict[str, Any]) -> None:
    """Put LoRA's updates beside the layers that `options` (of `peft.LoraConfig`) names.

    Raises:
        ConfigError: there are no such layers.
    """
    from peft import LoraConfig, inject_adapter_in_model  # here: slow to import, and most models have no LoRA

    if options.get("target_modules") == "all-linear" and not isinstance(part, PreTrainedModel):  # which peft asks for
        names = [name for name, module in part.named_modules() if isinstance(module, nn.Linear)]
        options = {**options, "target_modules": names}
    try:
        inject_adapter_in_model(LoraConfig(**options), part)
    except ValueError as error:
        raise ConfigError(f"lora_targets {options.get('target_modules')}: {first_line(error)}") from error


def without_lora(part: Part) -> Part:
    """The same module without LoRA's updates: a view, which shares weights, buffers and hooks with it.

    Nothing is switched off meanwhile, so that other threads may run the module itself.
    """
    children = {name: None if child is None else _base(child) for name, child in part._modules.items()}
    if all(children[name] is child for name, child in part._modules.items()):
        return part
    view = copy.copy(part)  # with the same dictionaries of weights, buffers and hooks
    view._modules = children
    return view


def _base(module: nn.Module) -> nn.Module:
    """What a layer that has LoRA updates, or `without_lora`."""
    return cast(nn.Module, module.base_layer) if hasattr(module, "lora_A") else without_lora(module)


def trained_encoder_weights(encoder: SpeechEncoder, config: ASRDogeConfig) -> set[str]:
    """Names of the encoder's weights, within the model, that training updates."""
    layers = encoder.last_layers(config.train_encoder_layers) if config.train_encoder == "last_k" else []
    last = {id(parameter) for layer in layers for parameter in layer.parameters()}
    return {
        f"encoder.{name}"
        for name, parameter in encoder.named_parameters()
        if id(parameter) in last or (config.train_encoder == "lora" and ".lora_" in name)
    }
