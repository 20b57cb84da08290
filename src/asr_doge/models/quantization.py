"""Weights of 8 bits: a quarter of the memory, and on the CPU a fraction of the time.

Promises: every linear layer of a module (and every convolution of width 1, which is one) becomes an `Int8Linear`,
except those too small to gain; each row of its input is rounded by itself, so that a clip's result does not depend on
its neighbours. What is not a matrix (embeddings, norms, the depthwise convolution) stays as it was.
Quantized before its weights are loaded, a module takes them as they are stored and rounds them one by one, so that it
never holds them whole.
It does not know which parts of a model are to be quantized, nor how to train what it has rounded.
"""

from collections.abc import Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

SMALLEST = 32
"""Inputs and outputs from which a layer is quantized; below, rounding costs more than it saves."""
_STEPS = 127
_QUIETEST = 1e-30
_ROWS_AT_ONCE = 32


class Int8Linear(nn.Module):
    """`x W^T + b` with `W` in 8 bits, a scale for each output, and `x` rounded to 8 bits with a scale for each row.

    It has the parameters of the layer that it replaces, by the same names, and takes their floating values.

    Args:
        weight: `[outputs, inputs]`, floating; or `[outputs, inputs, 1]`, a convolution's.
        bias: `[outputs]`.
    """

    scale: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape[:2]  # as `nn.Linear` calls them
        rounded, scale = _round_matrix(weight.detach())
        self.weight = nn.Parameter(rounded, requires_grad=False)
        self.register_buffer("scale", scale, persistent=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """`[..., inputs]` to `[..., outputs]`."""
        rows, scale = _round_rows(inputs.reshape(-1, inputs.shape[-1]))
        outputs = torch._int_mm(rows, self.weight.flatten(1).T) * scale
        outputs = outputs * self.scale if self.bias is None else torch.addcmul(self.bias, outputs, self.scale)
        return outputs.view(*inputs.shape[:-1], -1).to(inputs.dtype)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any) -> None:
        weight = state_dict.get(f"{prefix}weight")
        if weight is not None and weight.is_floating_point():
            state_dict[f"{prefix}weight"], self.scale = _round_matrix(weight)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def quantize_linear_layers(module: nn.Module) -> None:
    """Replace the linear layers within `module`, one after another, so that only one is ever held twice."""
    for name, child in list(module.named_children()):
        if name.startswith("lora_"):  # small, and peft converts what goes in to the type of their weights
            continue
        if _is_matrix(child) and min(child.weight.shape[:2]) >= SMALLEST:
            setattr(module, name, Int8Linear(child.weight, child.bias))
        else:
            quantize_linear_layers(child)


def is_quantized(module: nn.Module) -> bool:
    """Whether `quantize_linear_layers` has found something in `module`."""
    return any(isinstance(part, Int8Linear) for part in module.modules())


def quantized_weights(module: nn.Module) -> set[str]:
    """Names of the weights that `module` holds in 8 bits."""
    return {f"{name}.weight" for name, part in module.named_modules() if isinstance(part, Int8Linear)}


@register_quantization_config("asr_doge_int8")
class Int8Config(QuantizationConfigMixin):
    """Tells transformers' `from_pretrained` to round what it loads as `quantize_linear_layers` would."""

    def __init__(self, **_: Any) -> None:
        self.quant_method = "asr_doge_int8"  # type: ignore[assignment]  # an enum of transformers' own methods


@register_quantizer("asr_doge_int8")
class _Int8Quantizer(HfQuantizer):
    """What transformers asks while it loads a model in 8 bits."""

    def __init__(self, quantization_config: QuantizationConfigMixin, **options: Any) -> None:
        super().__init__(quantization_config, **options)
        self._scales: dict[str, Tensor] = {}

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **options: Any) -> bool:
        layer, _, name = param_name.rpartition(".")
        return name == "weight" and isinstance(model.get_submodule(layer), Int8Linear)

    def get_quantize_ops(self) -> ConversionOps:
        return _Round(self._scales)

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        quantize_linear_layers(model)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        for layer, scale in self._scales.items():
            model.get_submodule(layer).scale = scale
        self.remove_quantization_config(model)  # which names a quantizer that only this process knows

    @property
    def is_trainable(self) -> bool:
        return False

    def is_serializable(self) -> bool:
        return False


class _Round(ConversionOps):
    """A stored weight to its 8 bits, one at a time; the scales are put aside.

    (Transformers empties every buffer that no checkpoint holds once it has loaded the rest.)
    """

    def __init__(self, scales: dict[str, Tensor]) -> None:
        self._scales = scales

    def convert(  # type: ignore[override]  # as transformers' own operations of quantization are called
        self, input_dict: Mapping[str, Any], full_layer_name: str, **options: Any
    ) -> dict[str, Tensor]:
        ((_, stored),) = input_dict.items()
        rounded, scale = _round_matrix(stored[0] if isinstance(stored, list) else stored)
        self._scales[full_layer_name.removesuffix(".weight")] = scale
        return {full_layer_name: rounded}


def _is_matrix(layer: nn.Module) -> TypeGuard[nn.Linear | nn.Conv1d]:
    """Whether a layer is a product with a matrix, plus a bias."""
    if type(layer) is nn.Conv1d:
        return layer.kernel_size == (1,) and layer.stride == (1,) and layer.padding == (0,) and layer.groups == 1
    return type(layer) is nn.Linear


def _round_matrix(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`[outputs, ...]` as 8-bit integers, and the scale of each output `[outputs]`."""
    rounded = torch.empty_like(weight, dtype=torch.int8, memory_format=torch.contiguous_format)
    scale = torch.empty(len(weight), device=weight.device)
    if weight.is_meta:  # there is nothing to round, and not to round it takes seconds
        return rounded, scale
    # A few rows at a time: what is computed on the way to 8 bits takes several times as much memory as they do. Were it
    # nearly as large as what stays, glibc would take both from one heap, and keep its holes (0.2 GB).
    for start in range(0, len(weight), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        rows, scales = _round_rows(weight[part].flatten(1))
        rounded[part], scale[part] = rows.view_as(rounded[part]), scales[:, 0]
    return rounded, scale


def _round_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """`[M, K]` as 8-bit integers, and the scale of each row `[M, 1]`."""
    scale = rows.abs().amax(dim=1, keepdim=True).float().clamp_min(_QUIETEST) / _STEPS
    return (rows / scale).round_().to(torch.int8), scale
