"""Where the time of a call goes on a device: kernels by time, launches, and waits of the host.

Promises: `write_profiles` writes a table for each way, of one call after one that is not counted.
It does not know what the ways do.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

ROWS = 25
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")


def write_profiles(
    path: Path, ways: Mapping[str, Callable[[], Any]], device: torch.device, append: bool = False
) -> None:
    """Profile each way and write the tables; `append` keeps what the file has."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    order = f"self_{device.type}_time_total"
    with path.open("a" if append else "w") as file:
        for name, way in ways.items():
            way()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            with profile(activities=activities) as profiler:
                way()
            averages = profiler.key_averages()
            counts = {event.key: event.count for event in averages}
            launches, waits = (sum(counts.get(key, 0) for key in keys) for keys in (LAUNCHES, WAITS))
            # The profiler itself waits for the device once, at its end.
            file.write(f"== {name}: {launches} launches, {waits} waits of the host\n")
            file.write(averages.table(sort_by=order, row_limit=ROWS, max_name_column_width=70) + "\n")
