"""The published way of transcribing, as a yardstick: what it costs beside ours, in one run on one machine.

    python bench/original.py --output original.json           # published sizes: 14 GB of memory, minutes
    python bench/original.py --small                          # the same code on tiny sizes, to see that it runs

Promises: an independent statement of the published algorithm (no code of `asr_doge` runs in it but the log-mel front
end, which the two share): the whole of Granite Speech resident in float32, its 2.5B language model included; batch
size 1; for every token the language model reads the whole prefix again, with no cache. The weights are random, so the
number of tokens is fixed. The original runs in a process of its own, so that each way's peak memory is its own. Its
cold start is no less than is said here: the first transcript, and copying weights from a file of bfloat16 that is in
memory; not building the model, nor reading a disk.
It does not know accuracy: random weights have none. `bench/throughput.py` compares the original's training steps.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    GraniteSpeechConfig,
    GraniteSpeechForConditionalGeneration,
    PreTrainedConfig,
)

from asr_doge.audio.log_mel import log_mel_features
from asr_doge.benchmark.about import describe_machine
from asr_doge.benchmark.memory import peak_rss
from asr_doge.data.atomic_writing import write_atomically
from asr_doge.models import ASRDogeConfig, ASRDogeForConditionalGeneration
from asr_doge.models.configuration_asr_doge import published_encoder_config, published_text_config
from asr_doge.models.early_doge import EarlyDogeConfig, EarlyDogeForCausalLM

WAYS = ("original", "asr_doge")
PROMPT_TOKENS = 8
SAMPLE_RATE = 16_000


class Original(nn.Module):
    """The published model: all of Granite Speech, the adapter, all of Doge."""

    def __init__(self, granite: GraniteSpeechConfig, doge: EarlyDogeConfig, hidden_dim: int) -> None:
        super().__init__()
        self.speech = GraniteSpeechForConditionalGeneration(granite)
        speech_size = cast(PreTrainedConfig, granite.text_config).hidden_size
        self.adapter = nn.Sequential(
            nn.Linear(speech_size, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, doge.hidden_size)
        )
        self.language_model = EarlyDogeForCausalLM(doge)

    @torch.no_grad()
    def transcribe(self, waveform: Tensor, prompt: Tensor, num_tokens: int) -> Tensor:
        """Token ids `[num_tokens]` of a waveform `[samples]`, after a prompt `[P]`."""
        embed = self.language_model.get_input_embeddings()
        prefix = self._prefix(log_mel_features(waveform)[None], prompt)
        tokens: list[Tensor] = []
        for _ in range(num_tokens):
            logits = self.language_model(inputs_embeds=prefix, use_cache=False).logits
            tokens.append(logits[0, -1].argmax())
            prefix = torch.cat([prefix, embed(tokens[-1])[None, None]], dim=1)
        return torch.stack(tokens)

    def loss(self, features: Tensor, prompt: Tensor, labels: Tensor) -> Tensor:
        """Of a training step: the encoder runs anew, and what pads features `[B, T, F]` and labels `[B, L]` counts."""
        prefix = self._prefix(features, prompt)
        inputs = torch.cat([prefix, self.language_model.get_input_embeddings()(labels)], dim=1)
        logits = self.language_model(inputs_embeds=inputs, use_cache=False).logits
        return F.cross_entropy(logits[:, prefix.shape[1] - 1 : -1].flatten(0, 1), labels.flatten())

    def _prefix(self, features: Tensor, prompt: Tensor) -> Tensor:
        """Prompt `[P]` and speech of a batch as the language model reads them, `[B, P + N, H]`."""
        with torch.no_grad():
            speech = self.speech.get_audio_features(features).pooler_output
        before = self.language_model.get_input_embeddings()(prompt)[None].expand(len(speech), -1, -1)
        return torch.cat([before, self.adapter(speech)], dim=1)


def granite_config(small: bool) -> GraniteSpeechConfig:
    """The whole of Granite Speech 3.3-2b, or a tiny one of the same kind."""
    if not small:
        config = published_encoder_config()
        text = {
            "model_type": "granite",
            "hidden_size": 2048,
            "num_hidden_layers": 40,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "intermediate_size": 8192,
            "vocab_size": 49160,
            "tie_word_embeddings": True,
        }
        return GraniteSpeechConfig(
            encoder_config=cast(PreTrainedConfig, config.encoder_config).to_dict(),
            projector_config=cast(PreTrainedConfig, config.projector_config).to_dict(),
            text_config=text,
            window_size=config.window_size,
            downsample_rate=config.downsample_rate,
            has_lora_adapter=False,
        )
    small_qformer = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32}
    small_encoder = {"hidden_dim": 16, "num_layers": 2, "num_heads": 2, "dim_head": 8, "output_dim": 32}
    small_text = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    return GraniteSpeechConfig(
        encoder_config={"input_dim": 160, "context_size": 200, "max_pos_emb": 512, **small_encoder},
        projector_config={
            "model_type": "blip_2_qformer",
            "encoder_hidden_size": 16,
            "cross_attention_frequency": 1,
            **small_qformer,
        },
        text_config={"model_type": "granite", "intermediate_size": 32, "vocab_size": 64, **small_text},
        audio_token_index=63,
        window_size=15,
        downsample_rate=5,
        has_lora_adapter=False,
    )


def doge_config(small: bool) -> EarlyDogeConfig:
    """Doge-320M, or a tiny one."""
    config = published_text_config()
    if small:
        config.update({"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2})
        config.update({"num_attention_heads": 4, "num_key_value_heads": 2})
    return config


def randomize(model: nn.Module, seed: int = 0) -> None:
    """Random weights under which nothing vanishes: tiny numbers (denormals) would slow every product several times."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "residual" in name or parameter.ndim < 2:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator)


@torch.no_grad()
def copying_seconds(model: nn.Module) -> float:
    """How long it takes to overwrite all weights from a file of bfloat16, of which no byte comes from a disk."""
    most = max(parameter.numel() for parameter in model.parameters())
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(2 * most)
        stored = torch.from_file(file.name, size=most, dtype=torch.bfloat16)
        start = time.perf_counter()
        for parameter in model.parameters():
            parameter.copy_(stored[: parameter.numel()].view_as(parameter))
        return time.perf_counter() - start


def build(way: str, small: bool, num_tokens: int) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """A model, and its way to transcribe: waveform `[samples]` to token ids `[num_tokens]`."""
    granite, doge, hidden_dim = granite_config(small), doge_config(small), 16 if small else 512
    prompt = torch.arange(3, 3 + PROMPT_TOKENS)
    if way == "original":
        original = Original(granite, doge, hidden_dim).eval()
        randomize(original)
        return original, lambda waveform: original.transcribe(waveform, prompt, num_tokens)
    config = ASRDogeConfig(
        encoder_config=granite, text_config=doge, adapter_hidden_dim=hidden_dim, prompt_ids=prompt.tolist()
    )
    ours = ASRDogeForConditionalGeneration(config).eval()
    randomize(ours)
    length = GenerationConfig(
        min_new_tokens=num_tokens, max_new_tokens=num_tokens, num_beams=1, pad_token_id=2, eos_token_id=1
    )
    return ours, lambda waveform: ours.generate(log_mel_features(waveform)[None], generation_config=length)[0]


def measure(way: str, small: bool, seconds: float, num_tokens: int, runs: int) -> dict[str, float]:
    """Time one way on noise of `seconds`, after a run that is not counted; peaks in bytes."""
    start = time.perf_counter()
    model, transcribe = build(way, small, num_tokens)
    built = time.perf_counter() - start
    rng = np.random.default_rng(0)
    waveform = torch.from_numpy(0.1 * rng.standard_normal(round(seconds * SAMPLE_RATE)).astype(np.float32))
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        tokens = transcribe(waveform)
        times.append(time.perf_counter() - start)
    if len(tokens) != num_tokens:
        raise RuntimeError(f"{way} wrote {len(tokens)} tokens, not {num_tokens}")
    return {
        "build_seconds": built,
        "seconds": statistics.median(times[1:]),
        "real_time_factor": statistics.median(times[1:]) / seconds,
        "peak_rss_bytes": peak_rss(),
        "cold_start_seconds": times[0] + copying_seconds(model),
    }


def compare(options: argparse.Namespace) -> dict[str, object]:
    """The original in another process, ours in this one, and what one is of the other."""
    command = [sys.executable, __file__, "--way", "original", *(["--small"] if options.small else [])]
    command += ["--seconds", str(options.seconds), "--tokens", str(options.tokens), "--runs", str(options.runs)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        sys.exit(f"error: the original failed (too little memory?):\n{finished.stderr}")
    original: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    ours = measure("asr_doge", options.small, options.seconds, options.tokens, options.runs)
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(torch.device("cpu")),
        "sizes": "small" if options.small else "published",
        "audio_seconds": options.seconds,
        "tokens": options.tokens,
        "runs": options.runs,
        "original": original,
        "asr_doge": ours,
        "speedup": original["seconds"] / ours["seconds"],
        "memory_ratio": original["peak_rss_bytes"] / ours["peak_rss_bytes"],
    }


def main() -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--small", action="store_true", help="tiny sizes instead of the published ones")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the recording (default 10)")
    parser.add_argument("--tokens", type=int, default=30, help="tokens that are written (default 30)")
    parser.add_argument("--runs", type=int, default=3, help="timed runs, after one that is not counted (default 3)")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--way", choices=WAYS, help="measure one way only, in this process, and print it as JSON")
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options.small, options.seconds, options.tokens, options.runs)))
        return 0
    report = compare(options)
    if options.output:
        write_atomically(options.output, (json.dumps(report, indent=2) + "\n").encode())
    for way in WAYS:
        figures = report[way]
        assert isinstance(figures, dict)
        memory = figures["peak_rss_bytes"] / 1e9
        print(f"{way:<10} {figures['seconds']:8.2f} s   RTF {figures['real_time_factor']:.3f}   {memory:.2f} GB")
    print(f"asr_doge takes 1/{report['speedup']:.1f} of the time and 1/{report['memory_ratio']:.1f} of the memory")
    return 0


if __name__ == "__main__":
    sys.exit(main())
