"""In what precision, and on how much audio at once, the `features` command runs the encoder.

Promises: a precision that the device lacks is refused; the size of a batch is measured on the device, and is a multiple
of 60 s by a power of two, so that a little more or less of free memory gives the same batches, and the same bytes.
It knows neither the corpus nor the cache.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from asr_doge.choices import ComputeDtype
from asr_doge.errors import ConfigError
from asr_doge.models import LoadedEncoder
from asr_doge.models.device_memory import free_bytes, is_out_of_memory

SMALLEST_BATCH_SECONDS, LARGEST_BATCH_SECONDS = 60.0, 3840.0
_SHARE_OF_FREE_MEMORY = 0.7
"""The rest is for what the allocator cannot join, and for clips longer than those of the measurement."""
_CLIP_SECONDS = 20.0
_TF32_CAPABILITY = (8, 0)


def weights_dtype(compute_dtype: ComputeDtype, device: torch.device) -> torch.dtype:
    """Type of the encoder's weights.

    Raises:
        ConfigError: the device does not compute so.
    """
    if compute_dtype == "bf16":
        if device.type == "cuda" and not torch.cuda.is_bf16_supported():
            raise ConfigError(f"--compute_dtype bf16 cannot be used: {device} has no bfloat16; give fp32")
        return torch.bfloat16
    if compute_dtype == "tf32" and not (
        device.type == "cuda" and torch.cuda.get_device_capability(device) >= _TF32_CAPABILITY
    ):
        raise ConfigError(
            f"--compute_dtype tf32 cannot be used: it is for NVIDIA GPUs from Ampere on, and this is {device}; give"
            " fp32 or bf16"
        )
    return torch.float32


@contextmanager
def computing_in(compute_dtype: ComputeDtype) -> Iterator[None]:
    """Let products of float32 matrices be computed in TF32, if that was chosen."""
    before = torch.get_float32_matmul_precision()
    if compute_dtype == "tf32":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@torch.inference_mode()  # as when encoding: compiled blocks are compiled for it
def batch_seconds_that_fit(speech_encoder: LoadedEncoder) -> float:
    """Seconds of audio that the encoder's device holds at once; on a CPU, where more is not faster, the least.

    The least too where not even that fits; such a batch is encoded in halves.
    """
    device = speech_encoder.device
    if device.type != "cuda":
        return SMALLEST_BATCH_SECONDS
    rng, samples = np.random.default_rng(0), round(_CLIP_SECONDS * speech_encoder.sampling_rate)
    count = round(SMALLEST_BATCH_SECONDS / _CLIP_SECONDS)
    clips = [0.1 * rng.standard_normal(samples).astype(np.float32) for _ in range(count)]
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        speech_encoder.encode(clips, return_ctc_logits=speech_encoder.encoder.has_ctc)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        fits = False
    else:
        fits = True
    peak = torch.cuda.max_memory_allocated(device) - before
    torch.cuda.empty_cache()  # only now, since the error kept what was allocated
    return largest_batch_seconds(peak, free_bytes(device)) if fits else SMALLEST_BATCH_SECONDS


def largest_batch_seconds(peak: int, free: int) -> float:
    """Seconds of audio in a batch, if the smallest takes `peak` bytes and `free` bytes are left."""
    seconds = SMALLEST_BATCH_SECONDS
    while (
        seconds < LARGEST_BATCH_SECONDS and 2 * seconds / SMALLEST_BATCH_SECONDS * peak <= _SHARE_OF_FREE_MEMORY * free
    ):
        seconds *= 2
    return seconds
