"""Time, memory and start-up at published sizes, by precision, beside the original's way in the same run.

    python bench/speed.py --output speed.json               # 4 GB of disk, 4 GB of memory, minutes
    python bench/speed.py --original --output speed.json    # with bench/original.py's yardstick: 14 GB of memory
    python bench/speed.py --small                           # tiny sizes, to see that it runs

Promises: the model is loaded from a checkpoint on disk by the function that every command uses; each way runs in a
process of its own, so that its peak memory is its own, after loading and one run that is not counted. Beside the time
on the clock stands the processor's, which on one thread (OMP_NUM_THREADS=1) hardly depends on what else the machine
does.
Weights are random, so the number of tokens is fixed: "greedy" writes them one by one with the cache, "draft" reads them
in one pass, which is what draft verification costs when the draft is right. A start is cold for the process (imports
not counted), not for the disk. Padding is counted in operations: those of a mixed batch beyond those of its clips.
The file of figures is written anew after every part.
The ceiling of a way is the processor time that its operations (encoder, adapter, one draft pass) would take as products
of the size of an encoder's layer, measured in the same process; the ratio says how far away the whole is.
It does not know accuracy: random weights have none.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import DogeConfig, GraniteSpeechConfig, PreTrainedConfig

from asr_doge.benchmark.about import describe_machine
from asr_doge.benchmark.memory import peak_rss
from asr_doge.data.atomic_writing import write_atomically
from asr_doge.models import LoadedModel, assemble_model, load_model
from asr_doge.models.checkpoints import find_model, load_tokenizer
from asr_doge.models.configuration_asr_doge import published_encoder_config, published_text_config
from asr_doge.models.encoders import length_mask
from asr_doge.models.encoders.granite_speech import GraniteSpeechEncoder
from asr_doge.models.language_model import build_language_model
from asr_doge.models.precision import PrecisionName, layer_rates

PRECISIONS: dict[str, PrecisionName] = {"float32": "fp32", "bfloat16": "bf16", "int8": "int8"}
WAYS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": torch.bfloat16},
    "int8": {"quantization": "int8"},
}
SAMPLE_RATE = 16_000
MIXED_SECONDS = (2.0, 4.0, 6.0, 8.0, 10.0, 13.0, 16.0, 20.0)
Batch = tuple[Tensor, Tensor]
"""Input features `[B, T, F]` and their mask `[B, T]`."""


def configurations(small: bool) -> tuple[GraniteSpeechConfig, DogeConfig]:
    """The published encoder and language model, or tiny ones of the same kind."""
    granite, doge = published_encoder_config(), published_text_config()
    if small:
        assert isinstance(granite.encoder_config, PreTrainedConfig)
        assert isinstance(granite.projector_config, PreTrainedConfig)
        granite.encoder_config.update({"num_layers": 2, "hidden_dim": 32, "num_heads": 2, "dim_head": 16})
        granite.projector_config.update(
            {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "encoder_hidden_size": 32}
        )
        doge.update({"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2})
    return granite, doge


def make_checkpoint(folder: Path, small: bool, stored: torch.dtype) -> Path:
    """A checkpoint of random weights, its frozen parts beside it as their publishers lay them out."""
    granite, doge = configurations(small)
    encoder_folder, text_folder = folder / "encoder", folder / "language_model"
    _save_part(GraniteSpeechEncoder(granite), granite, encoder_folder, stored)
    _save_part(build_language_model(doge), doge, text_folder, stored)
    load_tokenizer(find_model("nano")).save_pretrained(text_folder)
    assemble_model(encoder_folder, text_folder, device="cpu").save(folder / "checkpoint")
    return folder / "checkpoint"


def _save_part(model: nn.Module, config: PreTrainedConfig, folder: Path, stored: torch.dtype) -> None:
    """Random weights under which nothing vanishes: denormal numbers would slow every product several times."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" in name.lower() or "residual" in name or parameter.ndim < 2:
            parameter.data.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            parameter.data.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
    folder.mkdir(parents=True)
    tied = {"lm_head.weight"}  # Doge's, which is the embedding
    weights = {
        name: tensor.to(stored) if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
        if name not in tied
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)


def noise(loaded: LoadedModel, seconds: Sequence[float]) -> Batch:
    """Features of clips of noise, padded to the longest."""
    rng = np.random.default_rng(0)
    waveforms = [0.1 * rng.standard_normal(round(length * SAMPLE_RATE)).astype(np.float32) for length in seconds]
    batch = loaded.processor(audio=waveforms, sampling_rate=SAMPLE_RATE)
    return batch["input_features"], batch["attention_mask"]


def greedy(loaded: LoadedModel, batch: Batch, num_tokens: int) -> Any:
    """Everything from features to `num_tokens` tokens, one by one."""
    return loaded.model.generate(*batch, min_new_tokens=num_tokens, max_new_tokens=num_tokens, num_beams=1)


@torch.inference_mode()
def draft(loaded: LoadedModel, batch: Batch, num_tokens: int) -> Any:
    """Everything from features to the verdict on a draft of `num_tokens` tokens."""
    speech = loaded.model.encode(*batch, return_ctc_logits=True)
    mask = length_mask(speech.speech_lengths, speech.speech_embeddings.shape[1])
    text = torch.randint(3, 100, (len(mask), num_tokens), device=mask.device)
    return loaded.model.prefill(speech.speech_embeddings, mask, text)[0].argmax(dim=-1)


def operations(function: Callable[[], Any]) -> int:
    """Floating point operations of a call."""
    with FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())


def timed(name: str, function: Callable[[], Any], runs: int, audio_seconds: float) -> dict[str, float]:
    """Medians of `runs` calls, for which everything is warm: seconds, the processor's seconds, and both per audio."""
    wall, processor = [], []
    for _ in range(runs):
        start, processor_start = time.perf_counter(), time.process_time()
        function()
        wall.append(time.perf_counter() - start)
        processor.append(time.process_time() - processor_start)
    seconds, processor_seconds = statistics.median(wall), statistics.median(processor)
    return {
        f"{name}_seconds": seconds,
        f"{name}_cpu_seconds": processor_seconds,
        f"{name}_rtf": seconds / audio_seconds,
        f"{name}_cpu_rtf": processor_seconds / audio_seconds,
    }


def measure(way: str, checkpoint: Path, seconds: float, num_tokens: int, runs: int, batch: bool) -> dict[str, float]:
    """Measure one way in this process: seconds, bytes and real-time factors (seconds of work per second of audio)."""
    start, processor_start = time.perf_counter(), time.process_time()
    loaded = load_model(checkpoint, device="cpu", **WAYS[way])
    figures = {"load_seconds": time.perf_counter() - start}
    one = noise(loaded, [seconds])
    draft(loaded, one, num_tokens)
    figures["cold_start_seconds"] = time.perf_counter() - start
    figures["cold_start_cpu_seconds"] = time.process_time() - processor_start
    figures |= timed("encode", lambda: loaded.model.encode(*one), runs, seconds)
    figures |= timed("draft", lambda: draft(loaded, one, num_tokens), runs, seconds)
    figures |= timed("greedy", lambda: greedy(loaded, one, num_tokens), runs, seconds)
    figures["peak_rss_bytes"] = peak_rss()
    figures["layer_operations_per_cpu_second"] = layer_rates(time.process_time)[PRECISIONS[way]]
    if way != "int8":  # products of whole numbers are not counted
        figures["operations"] = operations(lambda: draft(loaded, one, num_tokens))
    if batch:
        mixed = noise(loaded, MIXED_SECONDS)
        draft(loaded, mixed, num_tokens)
        figures |= timed("batch_draft", lambda: draft(loaded, mixed, num_tokens), runs, sum(MIXED_SECONDS))
        if way == "float32":  # products of whole numbers are not counted
            clips = [noise(loaded, [length]) for length in MIXED_SECONDS]
            alone = sum(operations(partial(draft, loaded, clip, num_tokens)) for clip in clips)
            figures["batch_padding"] = operations(partial(draft, loaded, mixed, num_tokens)) / alone - 1
    return figures


def in_own_process(*arguments: str) -> dict[str, float]:
    """The figures that a script prints as its last line, in JSON; none if it fails, so that other parts still run."""
    finished = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if finished.returncode:
        print(f"error: {' '.join(arguments)} failed (too little memory?):\n{finished.stderr}", file=sys.stderr)
        return {}
    return json.loads(finished.stdout.splitlines()[-1])


def compare(options: argparse.Namespace, folder: Path) -> bool:
    """Every way, each in a process of its own; whether all of them could be measured."""
    common = ["--seconds", str(options.seconds), "--tokens", str(options.tokens), "--runs", str(options.runs)]
    results = {}
    if options.original:
        small = ["--small"] if options.small else []
        script = str(Path(__file__).with_name("original.py"))
        results["original"] = in_own_process(script, "--way", "original", *common, *small)
        keep(options, results)
        print(f"original   {results['original']}", flush=True)
    batch = [] if options.batch else ["--no-batch"]
    checkpoint = options.checkpoint or make_checkpoint(folder, options.small, getattr(torch, options.stored))
    for way in options.ways:
        results[way] = in_own_process(__file__, "--way", way, "--checkpoint", str(checkpoint), *common, *batch)
        counted = next((figures["operations"] for figures in results.values() if "operations" in figures), None)
        if results[way] and counted is not None:
            results[way] |= beside_ceiling(results[way], counted)
        keep(options, results)
        if results[way]:
            print(line(way, results[way], results.get("original")), flush=True)
    return all(results.values())


def beside_ceiling(figures: dict[str, float], counted: float) -> dict[str, float]:
    """The least processor time for so many operations, and how many times as much was taken."""
    least = counted / figures["layer_operations_per_cpu_second"]
    return {"draft_ceiling_cpu_seconds": least, "draft_ceiling_ratio": figures["draft_cpu_seconds"] / least}


def keep(options: argparse.Namespace, results: dict[str, dict[str, float]]) -> None:
    """Write what was measured so far."""
    report = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(torch.device("cpu")),
        "sizes": "small" if options.small else "published",
        "stored": options.stored,
        "audio_seconds": options.seconds,
        "tokens": options.tokens,
        "runs": options.runs,
        "results": results,
    }
    if options.output:
        write_atomically(options.output, (json.dumps(report, indent=2) + "\n").encode())


def line(way: str, figures: dict[str, float], original: dict[str, float] | None) -> str:
    """One row of the table, with what the original takes of ours, if it was measured."""
    beside = ""
    if original:
        speed = original["seconds"] / figures["draft_seconds"]
        start = original["cold_start_seconds"] / figures["cold_start_seconds"]
        beside = f"  {speed:.1f} times as fast as the original, from cold {start:.1f} times"
    ceiling = ""
    if "draft_ceiling_ratio" in figures:
        ceiling = (
            f"  draft is {figures['draft_ceiling_ratio']:.2f} times its ceiling of"
            f" {figures['draft_ceiling_cpu_seconds']:.3f} s (cpu)"
        )
    batch = ""
    if "batch_draft_rtf" in figures:
        batch = f"  batch of 8 {figures['batch_draft_rtf']:.3f} (cpu {figures['batch_draft_cpu_rtf']:.3f})"
    if "batch_padding" in figures:
        batch += f" {100 * figures['batch_padding']:.1f} % padding"
    return (
        f"{way:<10} RTF draft {figures['draft_rtf']:.3f} (cpu {figures['draft_cpu_rtf']:.3f})"
        f"  greedy {figures['greedy_rtf']:.3f} (cpu {figures['greedy_cpu_rtf']:.3f})"
        f"{ceiling}{batch}  load {figures['load_seconds']:.1f} s  cold start {figures['cold_start_seconds']:.1f} s"
        f"  peak {figures['peak_rss_bytes'] / 1e9:.2f} GB{beside}"
    )


def main() -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--small", action="store_true", help="tiny sizes instead of the published ones")
    parser.add_argument("--original", action="store_true", help="first the original's way, which takes 14 GB")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="default: all")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the recording (default 10)")
    parser.add_argument("--tokens", type=int, default=30, help="tokens that are written (default 30)")
    parser.add_argument("--runs", type=int, default=3, help="timed runs, after loading and a first one (default 3)")
    parser.add_argument("--stored", choices=["float32", "bfloat16"], default="float32", help="of the files on disk")
    parser.add_argument("--folder", type=Path, help="folder for the checkpoint (default: a temporary one)")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--way", choices=WAYS, help="measure one way only, in this process, and print it as JSON")
    parser.add_argument("--checkpoint", type=Path, help="use this one (default: make one of random weights)")
    parser.add_argument("--batch", action=argparse.BooleanOptionalAction, default=True, help="a batch of 8, 79 s")
    options = parser.parse_args()
    if options.way:
        arguments = (options.checkpoint, options.seconds, options.tokens, options.runs, options.batch)
        print(json.dumps(measure(options.way, *arguments)))
        return 0
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        return 0 if compare(options, Path(folder)) else 1


if __name__ == "__main__":
    sys.exit(main())
