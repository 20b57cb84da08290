"""This process among those that train together, as torchrun and `accelerate launch` tell each of them.

It starts none, and knows nothing of what they do.
"""

import os
from typing import TextIO

import torch

from asr_doge.models import find_device
from asr_doge.training.configuration import TrainConfig


def process_count() -> int:
    """Processes of this run, as torchrun and `accelerate launch` tell each of them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_rank() -> int:
    """The number of this one, from 0."""
    return int(os.environ.get("RANK", "0"))


def say_once(line: str, file: TextIO | None = None) -> None:
    """Print a line that all processes have to say, once."""
    if process_rank() == 0:
        print(line, file=file)


def uses_fsdp(config: TrainConfig) -> bool:
    """Whether the weights are shared out over the processes."""
    return config.fsdp or os.environ.get("ACCELERATE_USE_FSDP") == "true"  # as `accelerate launch --use_fsdp` says it


def own_device(config: TrainConfig) -> torch.device:
    """The device of this process: the one asked for, or its own among several of the kind."""
    device = find_device(config.device)
    if process_count() == 1 or device.type == "cpu":
        return device
    return find_device(f"{device.type}:{os.environ.get('LOCAL_RANK', '0')}")
