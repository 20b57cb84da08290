"""LoRA: low-rank updates of the linear layers of a module.

Promises: updates have the same names and effect whether peft added them, to be trained, or this module, for inference:
peft takes half a second to import. Updates that are merged into the weights cost nothing at inference.
It does not know which modules get updates, nor where their weights come from.
Source: https://arxiv.org/abs/2106.09685.
"""

import copy
import re
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from asr_doge.errors import ConfigError, first_line

Part = TypeVar("Part", bound=nn.Module)

ALL_LINEAR = "all-linear"
"""A value of `target_modules`: every linear layer but a language model's output layer."""
_READ_OPTIONS = {"r", "lora_alpha", "lora_dropout", "target_modules"}
UPDATES_NAME = "default"
"""Peft's name for a module's only set of updates."""


class LoRALinear(nn.Module):
    """`x W^T + b + (x A^T B^T) alpha / r`; modules are named as in peft.

    Args:
        base_layer: with `W` `[outputs, inputs]` and `b`.
        rank: `r`, of `A` `[r, inputs]` and `B` `[outputs, r]`.
        alpha: scale of the updates, divided by `r`.
    """

    def __init__(self, base_layer: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base_layer = base_layer
        device, dtype = base_layer.weight.device, base_layer.weight.dtype
        down = nn.Linear(base_layer.in_features, rank, bias=False, device=device, dtype=dtype)
        up = nn.Linear(rank, base_layer.out_features, bias=False, device=device, dtype=dtype)
        self.lora_A, self.lora_B = nn.ModuleDict({UPDATES_NAME: down}), nn.ModuleDict({UPDATES_NAME: up})
        self.scaling = alpha / rank
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features

    @property
    def weight(self) -> Tensor:
        """`W`, whose type and device some models look at."""
        return self.base_layer.weight

    def forward(self, inputs: Tensor) -> Tensor:
        """`[..., inputs]` to `[..., outputs]`."""
        updates: Tensor = self.lora_B[UPDATES_NAME](self.lora_A[UPDATES_NAME](inputs)) * self.scaling
        return updates + self.base_layer(inputs)

    def merge(self) -> None:
        """Add the updates to `W`, in place; as in peft, the layer is then to be replaced by its base layer.

        Where `W` is mapped from a file, its pages are copied as they are written, and the file does not change. A new
        tensor would take memory in addition to these pages, which stay until no weight of the file is used any more.
        """
        weight, dtype = self.weight.detach(), torch.promote_types(self.weight.dtype, torch.float32)
        up, down = (cast(nn.Linear, layer[UPDATES_NAME]).weight.detach() for layer in (self.lora_B, self.lora_A))
        weight.copy_(weight.to(dtype).addmm_(up.to(dtype), down.to(dtype), alpha=self.scaling))


def add_trainable_lora(part: nn.Module, options: dict[str, Any], left_out: Sequence[str] = ()) -> None:
    """Have peft add updates to be trained, zero at first, to the layers that `options` (of `peft.LoraConfig`) names.

    Args:
        part: whose layers they are.
        options: of `peft.LoraConfig`.
        left_out: names of modules in `part` that get none.

    Raises:
        ConfigError: there are no such layers.
    """
    from peft import LoraConfig, inject_adapter_in_model  # here: slow to import, and only training needs it

    if options.get("target_modules") == ALL_LINEAR and not isinstance(part, PreTrainedModel):  # which peft asks for
        if not (names := _targets(part, ALL_LINEAR, left_out)):
            raise ConfigError(
                f"lora_targets {ALL_LINEAR}: there is no linear layer to train, and LoRA passes recurrent layers and"
                " convolutions by; --train_encoder last_k trains an encoder of these"
            )
        options = {**options, "target_modules": names}
    if left_out:
        options = {**options, "exclude_modules": rf"({'|'.join(map(re.escape, left_out))})(\..*)?"}
    try:
        inject_adapter_in_model(LoraConfig(**options), part)
    except ValueError as error:
        raise ConfigError(f"lora_targets {options.get('target_modules')}: {first_line(error)}") from error


def add_lora_for_inference(part: nn.Module, options: dict[str, Any], left_out: Sequence[str] = ()) -> None:
    """Add updates whose weights will be loaded; peft (`add_trainable_lora`) is imported for the rarer kinds only."""
    targets = options.get("target_modules")
    names = _targets(part, targets, left_out) if targets == ALL_LINEAR or isinstance(targets, list) else []
    layers = [part.get_submodule(name) for name in names]
    if not names or not options.keys() <= _READ_OPTIONS or not all(type(layer) is nn.Linear for layer in layers):
        add_trainable_lora(part, options, left_out)
        return
    for name, layer in zip(names, layers, strict=True):
        _replace(part, name, LoRALinear(cast(nn.Linear, layer), options.get("r", 8), options.get("lora_alpha", 8)))


def merge_updates(part: nn.Module) -> dict[str, Tensor]:
    """Add the updates to the weights of their layers, in place; returns the updates' weights by their former names."""
    updates: dict[str, Tensor] = {}
    for name, layer in [*part.named_modules()]:
        if has_updates(layer):
            updates |= {f"{name}.{own}": weight for own, weight in layer.state_dict().items() if "lora_" in own}
            cast(Any, layer).merge()
            _replace(part, name, cast(Any, layer).base_layer)
    return updates


def without_lora(part: Part) -> Part:
    """A view of the module without LoRA's updates: it shares weights, buffers and hooks with the module.

    The module itself keeps its updates, so other threads may run it at the same time.
    """
    children = {name: None if child is None else _base(child) for name, child in part._modules.items()}
    if all(children[name] is child for name, child in part._modules.items()):
        return part
    view = copy.copy(part)  # with the same dictionaries of weights, buffers and hooks
    view._modules = children
    return view


def has_updates(layer: nn.Module) -> bool:
    """Whether a layer is one of peft's or a `LoRALinear`."""
    return hasattr(layer, "lora_A")


def _base(module: nn.Module) -> nn.Module:
    """The base layer of a layer with updates; of any other module, `without_lora`."""
    return cast(nn.Module, module.base_layer) if has_updates(module) else without_lora(module)


def _targets(part: nn.Module, targets: str | list[str], left_out: Sequence[str]) -> list[str]:
    """Names of the layers that `target_modules` names, without those in the modules `left_out`."""
    names = _all_targets(part, targets)
    return [name for name in names if not any(f"{name}.".startswith(f"{other}.") for other in left_out)]


def _all_targets(part: nn.Module, targets: str | list[str]) -> list[str]:
    """The same with none left out: a target is a layer's own name or the end of its path, as in peft."""
    if targets == ALL_LINEAR:
        output = part.get_output_embeddings() if isinstance(part, PreTrainedModel) else None
        kinds = (nn.Linear, Conv1D)  # GPT-2's, which are linear too
        return [name for name, layer in part.named_modules() if isinstance(layer, kinds) and layer is not output]
    ends = tuple(f".{target}" for target in targets)
    return [name for name, _ in part.named_modules() if f".{name}".endswith(ends)]


def _replace(part: nn.Module, name: str, layer: nn.Module) -> None:
    """Put another layer in the place of the one with this name."""
    parent, _, own = name.rpartition(".")
    setattr(part.get_submodule(parent), own, layer)
