"""This process among those that train together, as set by torchrun and `accelerate launch`.

It starts no processes, and does not know what they do.
"""

import os
from typing import TextIO

import torch

from asr_doge.models import find_device
from asr_doge.training.configuration import TrainConfig


def process_count() -> int:
    """Number of processes of this run, from the environment that torchrun and `accelerate launch` set."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_rank() -> int:
    """The number of this one, from 0."""
    return int(os.environ.get("RANK", "0"))


def print_once(line: str, file: TextIO | None = None) -> None:
    """Print a line once, although all processes call this."""
    if process_rank() == 0:
        print(line, file=file)


def uses_fsdp(config: TrainConfig) -> bool:
    """Whether the weights are divided among the processes."""
    return config.fsdp or os.environ.get("ACCELERATE_USE_FSDP") == "true"  # set by `accelerate launch --use_fsdp`


def own_device(config: TrainConfig) -> torch.device:
    """The device of this process: the requested one, or its own among several of that kind."""
    device = find_device(config.device)
    if process_count() == 1 or device.type == "cpu":
        return device
    return find_device(f"{device.type}:{os.environ.get('LOCAL_RANK', '0')}")
