"""Predict the memory that training will need, before it starts.

Promises: weights, gradients and optimizer are calculated; activations kept for the backward pass are measured on the
longest utterance, and multiplied by the batch size. The plan is about the training device, not the disk, and leaves out
the memory of Python and its libraries.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from asr_doge.errors import AudioError
from asr_doge.models import ASRDogeForConditionalGeneration, ParameterCounts
from asr_doge.models.device_memory import free_bytes
from asr_doge.training.examples import NamedExamples, collate_named

_ADAM_STATES = 2  # running means of the gradient and of its square, in float32
_BACKWARD = 1.1
"""Peak of a backward pass relative to its start (`bench/memory.py`: 1.1 to 1.25)."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that one process needs, and bytes that are free.

    Attributes:
        parameters: of each part.
        weights, gradients, optimizer: of the whole run.
        activations: of a step, per utterance of the longest length.
        batch_size: utterances that a process reads at once.
        available: free bytes of the device.
    """

    parameters: ParameterCounts
    weights: int
    gradients: int
    optimizer: int
    activations: int
    batch_size: int
    available: int

    @property
    def total(self) -> int:
        """Memory at the peak of a step, with all its activations and all its gradients."""
        return self.weights + self.optimizer + self.gradients + self.activations * self.batch_size

    @property
    def largest_batch(self) -> int:
        """Utterances a process could read at once; 0 if not even one."""
        return max(0, (self.available - self.weights - self.optimizer - self.gradients) // self.activations)

    @property
    def fits(self) -> bool:
        """Whether the batch fits."""
        return self.batch_size <= self.largest_batch

    def lines(self) -> list[str]:
        """The plan as text."""
        counts = self.parameters
        parts = (("encoder", counts.encoder), ("adapter", counts.adapter), ("language model", counts.language_model))
        named = ", ".join(f"{name} {count:,}" for name, count in parts)
        needs = (
            ("weights", self.weights),
            ("gradients", self.gradients),
            ("optimizer", self.optimizer),
            (f"activations of {self.batch_size} × the longest utterance", self.activations * self.batch_size),
        )
        return [
            f"parameters: {named}; trained {counts.trainable:,} ({100 * counts.trainable_share:.2f} %)",
            "memory: " + ", ".join(f"{name} {_size(count)}" for name, count in needs),
            f"memory at its highest: {_size(self.total)} of {_size(self.available)}; at most {self.largest_batch:,}"
            " utterances at once fit",
        ]


def plan_memory(
    model: ASRDogeForConditionalGeneration,
    longest: dict[str, Tensor],
    batch_size: int,
    *,
    bf16: bool = False,
    shards: int = 1,
) -> MemoryPlan:
    """Predict the memory of training.

    Args:
        model: on its device; a forward pass is run.
        longest: a batch of one utterance, the longest.
        batch_size: utterances that a process reads at once.
        bf16: whether steps run in mixed precision.
        shards: number of processes that divide weights, gradients and optimizer among them (FSDP).
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    gradients = sum(parameter.nbytes for parameter in trained) // shards
    was_training = model.training
    model.train()
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):  # for dropout: the run must be the same with a plan and without
        activations = _activations(model, longest, bf16)
        if bf16:  # the copies of weights in bf16 are kept once, however many utterances there are
            twice = {name: torch.cat([tensor, tensor]) for name, tensor in longest.items()}
            activations = _activations(model, twice, bf16) - activations
    model.train(was_training)
    return MemoryPlan(
        parameters=model.count_parameters(),
        weights=weights // shards,
        gradients=gradients,
        optimizer=_ADAM_STATES * gradients,
        activations=max(round(_BACKWARD * activations), 1),
        batch_size=batch_size,
        available=free_bytes(model.device) + weights,
    )


def _activations(model: ASRDogeForConditionalGeneration, batch: dict[str, Tensor], bf16: bool) -> int:
    """Bytes in use when the backward pass of a batch begins, except the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    precision = torch.autocast(model.device.type, torch.bfloat16) if bf16 else nullcontext()
    with precision, saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(**batch)
    assert output.logits is not None
    # The logits, and the start of the backward pass: their gradient.
    return sum(kept.values()) + 2 * output.logits.numel() * 4


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def longest_batch(examples: NamedExamples, max_unreadable: int) -> dict[str, Tensor]:
    """The longest readable utterance as a batch, for `plan_memory`.

    Raises:
        AudioError: more than `max_unreadable` of the longest cannot be read.
    """
    durations = [utterance.duration for utterance in examples.utterances]
    by_length = sorted(range(len(examples)), key=lambda index: -durations[index])
    tried = [examples[by_length[0]]]
    while tried[-1].reason and len(tried) < min(max_unreadable + 1, len(examples)):
        tried.append(examples[by_length[len(tried)]])
    if tried[-1].reason:
        raise AudioError(f"not one of the {len(tried)} longest recordings can be read; the first: {tried[0].reason}")
    return {name: value for name, value in collate_named(tried[-1:]).items() if isinstance(value, Tensor)}
