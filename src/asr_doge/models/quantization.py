"""Weights of 8 bits: a quarter of the memory, and on the CPU a fraction of the time.

Promises: every linear layer of a module (and every convolution of width 1, which is one) becomes an `Int8Linear`,
except those too small to gain; each row of its input is rounded by itself, so that a clip's result does not depend on
its neighbours. What is not a matrix (embeddings, norms, the depthwise convolution) stays as it was.
It does not know which parts of a model are to be quantized, nor how to train what it has rounded.
"""

import torch
from torch import Tensor, nn

SMALLEST = 32
"""Inputs and outputs from which a layer is quantized; below, rounding costs more than it saves."""
_STEPS = 127
_QUIETEST = 1e-30


class Int8Linear(nn.Module):
    """`x W^T + b` with `W` in 8 bits, a scale for each output, and `x` rounded to 8 bits with a scale for each row.

    Args:
        weight: `[outputs, inputs]`, floating.
        bias: `[outputs]`.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        quantized, scale = _quantize_rows(weight)
        self.register_buffer("weight", quantized)
        self.register_buffer("scale", scale[:, 0])
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """`[..., inputs]` to `[..., outputs]`."""
        rows, scale = _quantize_rows(inputs.reshape(-1, inputs.shape[-1]))
        outputs = torch._int_mm(rows, self.weight.T) * scale
        outputs = outputs * self.scale if self.bias is None else torch.addcmul(self.bias, outputs, self.scale)
        return outputs.view(*inputs.shape[:-1], -1).to(inputs.dtype)


def quantize_linear_layers(module: nn.Module) -> None:
    """Replace the linear layers within `module`, one after another, so that only one is ever held twice."""
    for name, child in list(module.named_children()):
        weight = _matrix(child)
        if weight is not None and min(weight.shape) >= SMALLEST:
            setattr(module, name, Int8Linear(weight.detach(), child.bias))
        else:
            quantize_linear_layers(child)


def _matrix(layer: nn.Module) -> Tensor | None:
    """`[outputs, inputs]` of a layer that is a product with a matrix."""
    if type(layer) is nn.Linear:
        return layer.weight
    if type(layer) is nn.Conv1d and layer.kernel_size == (1,) and layer.stride == (1,) and layer.groups == 1:
        return layer.weight[..., 0]
    return None


def _quantize_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """`[M, K]` as 8-bit integers, and the scale of each row `[M, 1]`."""
    scale = rows.abs().amax(dim=1, keepdim=True).float().clamp_min(_QUIETEST) / _STEPS
    return (rows / scale).round_().to(torch.int8), scale
