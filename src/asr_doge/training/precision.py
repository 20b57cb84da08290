"""Decide whether a run computes in float32 or in mixed precision with bfloat16.

Promises: `--dtype auto` decides by the time of a step in each, measured on the actual device and model, and takes
float32 without measuring where the processor cannot multiply in bfloat16; all processes of a run agree; a resumed run
keeps its precision. Measuring changes neither the weights nor the random numbers of the run.
It considers time only, not the loss of accuracy.
"""

import platform
import time
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from asr_doge.models import ASRDogeForConditionalGeneration
from asr_doge.training.configuration import TrainConfig
from asr_doge.training.examples import NamedExamples, collate_named
from asr_doge.training.processes import print_once, process_count, process_rank

FASTER = 1.1
"""Factor by which bfloat16 must be faster: otherwise float32 is nearly as fast, and exact."""
X86 = ("x86_64", "amd64")
"""Names of the architecture of which torch knows what its processors can do."""
MEASURED_UTTERANCES = 4
"""Utterances of a timed batch; with one, an accelerator would be limited by overhead."""


def chosen_bf16(
    config: TrainConfig,
    model: ASRDogeForConditionalGeneration,
    examples: NamedExamples,
    batch_size: int,
    before: Mapping[str, Any] | None,
) -> bool:
    """Whether to compute in bfloat16; all processes must call it together, in an initialized group.

    A run that is resumed keeps what its record, `before`, has.
    """
    if config.dtype != "auto":
        return config.dtype == "bf16"
    if before is not None and "precision" in before:
        return bool(before["precision"] == "bf16")
    found: list[Any] = [None]
    if process_rank() == 0:
        found = [_is_faster_in_bf16(model, _batch(examples, min(batch_size, MEASURED_UTTERANCES)))]
    if process_count() > 1:
        broadcast_object_list(found)
    speed_up: float | None = found[0]
    if speed_up is None:
        print_once("precision: fp32, as bf16 cannot be used on this device")
        return False
    print_once(
        f"precision: {'bf16' if speed_up >= FASTER else 'fp32'}, a step in bf16 being {speed_up:.2f} times as fast"
    )
    return speed_up >= FASTER


def _batch(examples: NamedExamples, count: int) -> dict[str, Tensor]:
    """A batch that repeats the utterance of median length, or the next longer readable one."""
    durations = [utterance.duration for utterance in examples.utterances]
    by_length = sorted(range(len(examples)), key=lambda index: durations[index])
    for index in (*by_length[len(by_length) // 2 :], *by_length):
        example = examples[index]
        if not example.reason:
            break
    return {name: value for name, value in collate_named([example] * count).items() if isinstance(value, Tensor)}


def _is_faster_in_bf16(model: ASRDogeForConditionalGeneration, batch: dict[str, Tensor]) -> float | None:
    """The speed-up of a step by bfloat16; None if the device has no instructions for it."""
    device = model.device
    if not _multiplies_in_bf16(device):
        return None
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    was_training = model.training
    model.train()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            in_fp32, in_bf16 = (_seconds(model, batch, bf16) for bf16 in (False, True))
        except RuntimeError:  # no autocast on this device; or out of memory, which the run will report
            return None
        finally:
            model.zero_grad(set_to_none=True)
            model.train(was_training)
    return in_fp32 / in_bf16


def _multiplies_in_bf16(device: torch.device) -> bool:
    """Whether there are instructions for it, as far as is known: without, a step takes minutes before a large model."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if device.type == "cpu" and platform.machine().lower() in X86:
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return True


def _seconds(model: ASRDogeForConditionalGeneration, batch: dict[str, Tensor], bf16: bool) -> float:
    """Time of a forward and a backward pass, the better of two after a warm-up."""
    times = []
    for _ in range(3):
        _wait(model.device)
        start = time.perf_counter()
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            loss = model(**batch).loss
        loss.backward()
        _wait(model.device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _wait(device: torch.device) -> None:
    """Wait for an accelerator, which continues after its calls return."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
