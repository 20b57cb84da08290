"""Choose the precision in which this machine computes fastest.

Promises: the choice is measured, not guessed from names of processors: a layer of the published encoder's size is timed
in each precision that the device supports, which takes half a second on a CPU. A lower precision must be clearly faster
to be chosen. `layer_rates` is also the ceiling that `bench/speed.py` compares with.
It does not know what a lower precision costs in accuracy (docs/performance.md does).
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F

from asr_doge.choices import Dtype, LoadDtype, Quantization
from asr_doge.models.loading import TORCH_TYPES, find_device
from asr_doge.models.quantization import Int8Linear

PrecisionName = Literal["fp32", "bf16", "int8"]
ROWS, INPUTS, OUTPUTS = 500, 1024, 4096
"""Size of the measured product: ten seconds of audio in a feed-forward layer of the published encoder."""
CLEARLY = 1.1
"""A lower precision is chosen only if it is this many times as fast as a higher one."""
_RUNS = 3


@dataclass(frozen=True)
class Precision:
    """The precision in which to load a model.

    Attributes:
        dtype: of the weights and of the computation.
        quantization: of the matrices.
        rates: operations a second of each precision that was measured; empty if nothing was.
    """

    dtype: Dtype
    quantization: Quantization
    rates: Mapping[PrecisionName, float]

    def __str__(self) -> str:
        """The choice, and why, in one line."""
        name = "int8" if self.quantization == "int8" else self.dtype
        measured = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in self.rates.items())
        return f"precision: {name} (billion operations a second: {measured})" if measured else f"precision: {name}"


def choose_precision(dtype: LoadDtype, quantization: Quantization, device: str | torch.device | None) -> Precision:
    """The precision that flags name, or with `auto` the fastest of the device; a quantization that is named stays.

    Raises:
        ConfigError: there is no such device.
    """
    if dtype != "auto":
        return Precision(dtype, quantization, {})
    found = find_device(device)
    if found.type != "cpu":
        has_bf16 = found.type != "cuda" or torch.cuda.is_bf16_supported()
        return Precision("bf16" if has_bf16 else "fp32", quantization, {})
    if quantization == "int8":
        return Precision("fp32", "int8", {})
    rates = layer_rates()
    name = fastest(rates)
    return Precision("fp32", "int8", rates) if name == "int8" else Precision(name, "none", rates)


def fastest(rates: Mapping[PrecisionName, float]) -> PrecisionName:
    """The precision to choose, given each one's operations a second."""
    best: PrecisionName = "fp32"
    for name in get_args(PrecisionName):
        if rates[name] >= CLEARLY * rates[best]:
            best = name
    return best


@torch.inference_mode()
def layer_rates(clock: Callable[[], float] = time.perf_counter) -> dict[PrecisionName, float]:
    """Operations a second of a linear layer on the CPU, by precision: the best of a few runs, on torch's threads."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(ROWS, INPUTS, generator=generator)
    weight = torch.randn(OUTPUTS, INPUTS, generator=generator) / INPUTS**0.5
    rounded = Int8Linear(weight, None)
    lower, lower_weight = (tensor.to(TORCH_TYPES["bf16"]) for tensor in (inputs, weight))
    layers: dict[PrecisionName, Callable[[], Any]] = {
        "fp32": lambda: F.linear(inputs, weight),
        "bf16": lambda: F.linear(lower, lower_weight),
        "int8": lambda: rounded(inputs),
    }
    return {name: 2 * ROWS * INPUTS * OUTPUTS / _least_seconds(layer, clock) for name, layer in layers.items()}


def _least_seconds(action: Callable[[], Any], clock: Callable[[], float]) -> float:
    """The shortest of some calls by a clock, after one that is not counted."""
    action()
    times = []
    for _ in range(_RUNS):
        start = clock()
        action()
        times.append(clock() - start)
    return min(times)
