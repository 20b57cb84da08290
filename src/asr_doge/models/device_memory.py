"""Memory of the device that computes: how much is free, and whether an error says that it was too little.

Promises: the same answers for every command that fits its work into a device. It does not know what the work is.
"""

import psutil
import torch


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device had too little memory; a CPU has no error class of its own for it."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
