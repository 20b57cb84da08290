"""Published sizes on a GPU: real-time factors by batch size, how well encoder and training use the device, and memory.

    python bench/gpu.py --output gpu.json                   # minutes, one GPU
    python bench/gpu.py --compile --profile kernels.txt --profile_batch_size 64
    python bench/gpu.py --small --device cpu                # tiny sizes, to see that it runs

Promises: random weights in bfloat16, loaded by the function that every command uses; a fixed number of tokens, "draft"
reading them in one pass and "greedy" writing them one by one (see bench/speed.py). The encoder's share of the peak is
its floating point operations per second over those of a large matrix product, both measured here; so is that of a
training step of the adapter, from speech embeddings as the feature cache gives them, with float32 weights and bfloat16
autocast as `asr-doge train` has them. "original" computes
as the published code does (float32, batch 1, the whole prefix again for every token), without its idle 2.5B language
model in memory. RTFx is seconds of audio per second of work. `--compile` measures the encoder and "draft" a second time
with compiled conformer blocks, in the same run. `--profile` writes where the time goes: kernels by device time,
launches, and waits of the host for the device, the encoder being compiled if that was measured.
It does not know accuracy: random weights have none.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
from profiling import write_profiles
from speed import Batch, draft, greedy, make_checkpoint, noise
from torch.utils.flop_counter import FlopCounterMode

from asr_doge.benchmark.about import describe_machine
from asr_doge.data.atomic_writing import write_atomically
from asr_doge.errors import first_line
from asr_doge.models import LoadedModel, find_device, load_model

BATCH_SIZES = (1, 8, 32, 64, 128, 256)
PEAK_SIZE = 8192
EMBEDDINGS_PER_SECOND, TOKENS_PER_SECOND = 10, 3.5


def seconds_of(function: Callable[[], Any], device: torch.device, runs: int = 3) -> float:
    """Median time of a call, after two that are not counted."""
    times = []
    for _ in range(runs + 2):
        start = time.perf_counter()
        function()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def measured_peak(device: torch.device, size: int) -> float:
    """Floating point operations per second of a `size` × `size` product in bfloat16."""
    matrix = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    return 2 * size**3 / seconds_of(lambda: matrix @ matrix, device)


@torch.inference_mode()
def original(loaded: LoadedModel, batch: Batch, num_tokens: int) -> None:
    """The published way: for every token, the language model reads everything from the beginning."""
    speech = loaded.model.encode(*batch).speech_embeddings
    prefix, _ = loaded.model.adapter(speech, torch.tensor([speech.shape[1]], device=speech.device))
    embed = loaded.model.get_input_embeddings()
    for _ in range(num_tokens):
        logits = loaded.model.language_model(inputs_embeds=prefix, use_cache=False).logits
        prefix = torch.cat([prefix, embed(logits[:, -1:].argmax(dim=-1))], dim=1)


def measure_original(checkpoint: Path, device: torch.device, seconds: float, num_tokens: int) -> float:
    """RTFx of the published way, in float32."""
    loaded = load_model(checkpoint, device=device)
    one = on(device, noise(loaded, [seconds]))
    return seconds / seconds_of(lambda: original(loaded, one, num_tokens), device, runs=1)


def on(device: torch.device, batch: Batch) -> Batch:
    """A batch on a device."""
    return batch[0].to(device), batch[1].to(device)


@torch.inference_mode()
def measure_batch(loaded: LoadedModel, size: int, seconds: float, num_tokens: int) -> dict[str, float]:
    """One batch size: RTFx, the encoder's operations per second, and the memory."""
    device = loaded.model.device
    batch = on(device, noise(loaded, [seconds] * size))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with FlopCounterMode(display=False) as counter:
        loaded.model.encode(*batch)
    encode_seconds = seconds_of(lambda: loaded.model.encode(*batch), device)
    return {
        "batch_size": size,
        "encode_seconds": encode_seconds,
        "encoder_flops": counter.get_total_flops(),
        "encoder_flops_per_second": counter.get_total_flops() / encode_seconds,
        "draft_rtfx": size * seconds / seconds_of(lambda: draft(loaded, batch, num_tokens), device),
        "greedy_rtfx": size * seconds / seconds_of(lambda: greedy(loaded, batch, num_tokens), device, runs=1),
        "peak_device_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0,
    }


@torch.inference_mode()
def measure_compiled(
    loaded: LoadedModel, batches: list[dict[str, float]], seconds: float, num_tokens: int, peak: float
) -> list[dict[str, float]]:
    """Encoder and draft with compiled conformer blocks, at the sizes of `batches`, the largest first."""
    device = loaded.model.device
    loaded.model.encoder.compile()
    compiled = []
    for before in sorted(batches, key=lambda figures: -figures["batch_size"]):
        size = int(before["batch_size"])
        batch = on(device, noise(loaded, [seconds] * size))
        start = time.perf_counter()
        loaded.model.encode(*batch)
        first_seconds = time.perf_counter() - start
        encode_seconds = seconds_of(partial(loaded.model.encode, *batch), device)
        draft_seconds = seconds_of(partial(draft, loaded, batch, num_tokens), device)
        figures = {
            "batch_size": size,
            "first_seconds": first_seconds,
            "encode_seconds": encode_seconds,
            "encoder_share_of_peak": before["encoder_flops"] / encode_seconds / peak,
            "draft_rtfx": size * seconds / draft_seconds,
        }
        print(
            f"compiled   batch {size:>4} RTFx draft {figures['draft_rtfx']:.0f}"
            f"  encoder at {100 * figures['encoder_share_of_peak']:.0f} % of the peak,"
            f" {before['encode_seconds'] / encode_seconds:.2f} times as fast  first call {first_seconds:.1f} s",
            flush=True,
        )
        compiled.append(figures)
    return compiled


def training_step(checkpoint: Path, device: torch.device, size: int, seconds: float) -> Callable[[], None]:
    """A training step from cached features."""
    model = load_model(checkpoint, device=device).model.train()
    optimizer = torch.optim.AdamW(model.adapter.parameters(), fused=True)
    embeddings = torch.randn(size, round(EMBEDDINGS_PER_SECOND * seconds), model.encoder.hidden_size, device=device)
    labels = torch.randint(3, 300, (size, round(TOKENS_PER_SECOND * seconds)), device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(speech_embeddings=embeddings, labels=labels).loss
        assert loss is not None
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure_training(step: Callable[[], None], device: torch.device, size: int) -> dict[str, float]:
    """A training step: samples and operations per second, and the memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with FlopCounterMode(display=False) as counter:
        step()
    step_seconds = seconds_of(step, device)
    return {
        "batch_size": size,
        "samples_per_second": size / step_seconds,
        "flops_per_second": counter.get_total_flops() / step_seconds,
        "peak_device_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0,
    }


@torch.inference_mode()
def profile(options: argparse.Namespace, loaded: LoadedModel) -> None:
    """Write where the time of each way goes, the encoder compiled if it was measured so."""
    batch = on(loaded.model.device, noise(loaded, [options.seconds] * options.profile_batch_size))
    ways = {
        "encode": lambda: loaded.model.encode(*batch),
        "draft": lambda: draft(loaded, batch, options.tokens),
        "greedy": lambda: greedy(loaded, batch, options.tokens),
    }
    write_profiles(options.profile, ways, loaded.model.device)


def measure(options: argparse.Namespace, device: torch.device, folder: Path) -> dict[str, Any]:
    """Everything, printed as it comes."""
    checkpoint = make_checkpoint(folder, options.small, torch.bfloat16)
    original_rtfx = measure_original(checkpoint, device, options.seconds, options.tokens)
    print(f"original   RTFx {original_rtfx:.1f}", flush=True)
    loaded = load_model(checkpoint, device=device, dtype=torch.bfloat16)
    peak = measured_peak(device, 256 if options.small else PEAK_SIZE)
    print(f"peak       {peak / 1e12:.1f} TFLOP/s in a matrix product", flush=True)
    batches = []
    for size in options.batch_sizes:
        try:
            figures = measure_batch(loaded, size, options.seconds, options.tokens)
        except torch.OutOfMemoryError:
            print(f"batch {size:>4} does not fit into the device's memory", flush=True)
            break
        figures["encoder_share_of_peak"] = figures["encoder_flops_per_second"] / peak
        print(
            f"batch {size:>4} RTFx draft {figures['draft_rtfx']:.0f}  greedy {figures['greedy_rtfx']:.0f}"
            f"  encoder at {100 * figures['encoder_share_of_peak']:.0f} % of the peak"
            f"  {figures['peak_device_bytes'] / 1e9:.1f} GB",
            flush=True,
        )
        batches.append(figures)
    compiled: list[dict[str, float]] = []
    if options.compile:
        try:
            compiled = measure_compiled(loaded, batches, options.seconds, options.tokens, peak)
        except Exception as error:  # without a compiler for the device, the figures above still count
            print(f"error: the encoder cannot be compiled here: {first_line(error)}", file=sys.stderr)
            loaded = load_model(checkpoint, device=device, dtype=torch.bfloat16)
    if options.profile:
        profile(options, loaded)
    del loaded
    step = training_step(checkpoint, device, options.training_batch_size, options.seconds)
    training = measure_training(step, device, options.training_batch_size)
    training["share_of_peak"] = training["flops_per_second"] / peak
    print(
        f"training   {training['samples_per_second']:.0f} samples/s from cached features, batch"
        f" {training['batch_size']}, at {100 * training['share_of_peak']:.0f} % of the peak"
        f"  {training['peak_device_bytes'] / 1e9:.1f} GB",
        flush=True,
    )
    if options.profile:
        write_profiles(options.profile, {"training": step}, device, append=True)
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(device),
        "sizes": "small" if options.small else "published",
        "audio_seconds": options.seconds,
        "tokens": options.tokens,
        "matmul_peak_flops_per_second": peak,
        "original_rtfx": original_rtfx,
        "batches": batches,
        "compiled": compiled,
        "training": training,
    }


def main() -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", help="default: the machine's accelerator")
    parser.add_argument("--small", action="store_true", help="tiny sizes instead of the published ones")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=BATCH_SIZES, help=f"default {BATCH_SIZES}")
    parser.add_argument("--training_batch_size", type=int, default=64, help="default 64")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each recording (default 10)")
    parser.add_argument("--tokens", type=int, default=30, help="tokens that are written (default 30)")
    parser.add_argument("--compile", action="store_true", help="measure with compiled conformer blocks too")
    parser.add_argument("--profile", type=Path, help="text file for where the time goes, kernel by kernel")
    parser.add_argument("--profile_batch_size", type=int, default=64, help="default 64")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = measure(options, find_device(options.device), Path(folder))
    if options.output:
        write_atomically(options.output, (json.dumps(report, indent=2) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
