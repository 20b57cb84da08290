"""Quantize weights to 8 bits: a quarter of the memory, and on a CPU with instructions for it a fraction of the time.

Promises: every linear layer of a module (and every convolution of width 1, which is equivalent) becomes an
`Int8Linear`, except those too small to gain; each row of its input is rounded by itself, so a clip's result does not
depend on its neighbours. Other weights (embeddings, norms, the depthwise convolution) are unchanged. On a CPU that is
slow with products of integers (without VNNI), the weights are multiplied as floating-point numbers, a part at a time;
inputs are not rounded then, and a layer takes about as long as it would in float32. Which of the two it is depends on
the CPU alone, so that every process of one machine gives the same text.
A module that is quantized before its weights are loaded rounds them one by one while loading, so it never holds all of
them as stored.
It does not know which parts of a model to quantize, and cannot train what it has rounded.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

SMALLEST = 32
"""Least number of inputs and outputs of a layer that is quantized; below, rounding costs more than it saves."""
_STEPS = 127
_QUIETEST = 1e-30
_ROWS_AT_ONCE = 32
_WEIGHTS_AT_ONCE = 1 << 20
"""Weights that are made floating-point numbers at once: few enough to stay in the processor's cache."""


class Int8Linear(nn.Module):
    """`x W^T + b` with `W` in 8 bits, one scale per output, and `x` rounded to 8 bits with one scale per row.

    (Or `x` as it is, see above.)

    It has the parameters of the layer that it replaces, with the same names, and loads their floating-point values.

    Args:
        weight: `[outputs, inputs]`, floating; or `[outputs, inputs, 1]`, a convolution's.
        bias: `[outputs]`.
    """

    scale: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape[:2]  # names as in `nn.Linear`
        rounded, scale = _round_matrix(weight.detach())
        self.weight = nn.Parameter(rounded, requires_grad=False)
        self.register_buffer("scale", scale, persistent=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """`[..., inputs]` to `[..., outputs]`."""
        rows, weight = inputs.reshape(-1, inputs.shape[-1]), self.weight.flatten(1)
        outputs = _integer_products(rows, weight) if integers_are_fast() else _floating_products(rows, weight)
        outputs = outputs * self.scale if self.bias is None else torch.addcmul(self.bias, outputs, self.scale)
        return outputs.view(*inputs.shape[:-1], -1).to(inputs.dtype)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any) -> None:
        weight = state_dict.get(f"{prefix}weight")
        if weight is not None and weight.is_floating_point():
            state_dict[f"{prefix}weight"], self.scale = _round_matrix(weight)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def quantize_linear_layers(module: nn.Module) -> None:
    """Replace the linear layers within `module` one after another, so that at most one is in memory twice."""
    for name, child in list(module.named_children()):
        if name.startswith("lora_"):  # small, and peft converts their input to the type of their weights
            continue
        if _is_matrix(child) and min(child.weight.shape[:2]) >= SMALLEST:
            setattr(module, name, Int8Linear(child.weight, child.bias))
        else:
            quantize_linear_layers(child)


def is_quantized(module: nn.Module) -> bool:
    """Whether `module` has quantized layers."""
    return any(isinstance(part, Int8Linear) for part in module.modules())


def quantized_weights(module: nn.Module) -> set[str]:
    """Names of the weights that `module` holds in 8 bits."""
    return {f"{name}.weight" for name, part in module.named_modules() if isinstance(part, Int8Linear)}


@register_quantization_config("asr_doge_int8")
class Int8Config(QuantizationConfigMixin):
    """Makes transformers' `from_pretrained` round the weights it loads as `quantize_linear_layers` does."""

    def __init__(self, **_: Any) -> None:
        self.quant_method = "asr_doge_int8"  # type: ignore[assignment]  # an enum of transformers' own methods


@register_quantizer("asr_doge_int8")
class _Int8Quantizer(HfQuantizer):
    """The hooks that transformers calls while it loads a model in 8 bits."""

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
        self.remove_quantization_config(model)  # it names a quantizer that exists only in this process

    @property
    def is_trainable(self) -> bool:
        return False

    def is_serializable(self) -> bool:
        return False


class _Round(ConversionOps):
    """Rounds one stored weight to 8 bits; the scales are kept aside.

    (After loading, transformers clears every buffer that is not in the checkpoint.)
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


@cache
def integers_are_fast() -> bool:
    """Whether this CPU has AVX-512 VNNI: products of integers take 25 times as long as float32's with AVX2 alone."""
    return torch.cpu._is_vnni_supported()


def _integer_products(rows: Tensor, weight: Tensor) -> Tensor:
    """`rows @ weight.T` of `[M, K]` and 8-bit `[N, K]`, with the rows rounded to 8 bits too."""
    rounded, scale = _round_rows(rows)
    return torch._int_mm(rounded, weight.T) * scale


def _floating_products(rows: Tensor, weight: Tensor) -> Tensor:
    """`rows @ weight.T` of `[M, K]` and 8-bit `[N, K]`, in the type of the rows."""
    products = rows.new_empty(len(rows), len(weight))
    step = max(1, _WEIGHTS_AT_ONCE // weight.shape[1])
    for start in range(0, len(weight), step):
        part = slice(start, start + step)
        products[:, part] = F.linear(rows, weight[part].to(rows.dtype))
    return products


def _is_matrix(layer: nn.Module) -> TypeGuard[nn.Linear | nn.Conv1d]:
    """Whether a layer is a matrix product plus a bias."""
    if type(layer) is nn.Conv1d:
        return layer.kernel_size == (1,) and layer.stride == (1,) and layer.padding == (0,) and layer.groups == 1
    return type(layer) is nn.Linear


def _round_matrix(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`[outputs, ...]` as 8-bit integers, and the scale of each output `[outputs]`."""
    rounded = torch.empty_like(weight, dtype=torch.int8, memory_format=torch.contiguous_format)
    scale = torch.empty(len(weight), device=weight.device)
    if weight.is_meta:  # there is nothing to round, and rounding it anyway takes seconds
        return rounded, scale
    # A few rows at a time: intermediate results take several times as much memory as the 8-bit values. If they were
    # nearly as large as what stays, glibc would take both from one heap and keep its holes (0.2 GB).
    for start in range(0, len(weight), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        rows, scales = _round_rows(weight[part].flatten(1))
        rounded[part], scale[part] = rows.view_as(rounded[part]), scales[:, 0]
    return rounded, scale


def _round_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """`[M, K]` as 8-bit integers, and the scale of each row `[M, 1]`."""
    scale = rows.abs().amax(dim=1, keepdim=True).float().clamp_min(_QUIETEST) / _STEPS
    return (rows / scale).round_().to(torch.int8), scale
