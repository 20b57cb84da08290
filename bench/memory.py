"""Compare the memory that `asr-doge train --plan` predicts with what training steps take at their highest (Linux, CPU).

Example:
    python bench/memory.py

Promises: each size is trained for two steps in a process of its own, with random weights and speech embeddings; memory
is what the process grew by, after it had warmed up on a small model (a forked process holds no page of a library before
it has used it). One line of JSON for each size.
glibc is told (`mallopt`) to give freed memory back; it otherwise keeps holes, up to as much again.
"""

import ctypes
import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DogeConfig

from asr_doge.models import ASRDogeConfig, ASRDogeForConditionalGeneration
from asr_doge.models.checkpoints import find_model, load_model_config
from asr_doge.training.plan import plan_memory

SIZES: tuple[dict[str, Any], ...] = (
    {"hidden_size": 256, "layers": 2, "vocab": 4000, "train": "none", "batch": 32},
    {"hidden_size": 256, "layers": 2, "vocab": 4000, "train": "lora", "batch": 16},
    {"hidden_size": 512, "layers": 4, "vocab": 4000, "train": "full", "batch": 4},
)
SPEECH_LENGTH, TEXT_LENGTH = 150, 40
M_MMAP_THRESHOLD, THRESHOLD = -3, 65536  # the first as <malloc.h> has it


def main() -> None:
    """Measure and print."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, THRESHOLD)
    torch.set_num_threads(1)
    for size in SIZES:
        child = os.fork()
        if child == 0:
            print(json.dumps({**size, **_measure(**size)}), flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            raise SystemExit(f"{size}: failed")


def _measure(hidden_size: int, layers: int, vocab: int, train: str, batch: int) -> dict[str, float]:
    _steps(_model(64, 2, 500, train), 2, 500)
    with suppress(OSError):  # where it may not be reset, the highest was when the libraries were imported
        Path("/proc/self/clear_refs").write_text("5")
    before = _memory("VmRSS")
    model = _model(hidden_size, layers, vocab, train)
    predicted = plan_memory(model, _batch(model, 1, vocab), batch).total
    _steps(model, batch, vocab)
    measured = _memory("VmHWM") - before
    return {
        "predicted_mb": round(predicted / 1e6),
        "measured_mb": round(measured / 1e6),
        "ratio": predicted / measured,
    }


def _model(hidden_size: int, layers: int, vocab: int, train: str) -> ASRDogeForConditionalGeneration:
    text_config = DogeConfig(
        vocab_size=vocab,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        pad_token_id=2,
    )
    encoder_config = load_model_config(find_model("nano/encoder"))
    return ASRDogeForConditionalGeneration(
        ASRDogeConfig(
            encoder_config=encoder_config,
            text_config=text_config,
            speech_encoder=None,
            language_model=None,
            prompt_ids=[3, 4, 5],
            train_language_model=train,
        )
    )


def _batch(model: ASRDogeForConditionalGeneration, count: int, vocab: int) -> dict[str, Tensor]:
    return {
        "speech_embeddings": torch.randn(count, SPEECH_LENGTH, model.encoder.hidden_size),
        "labels": torch.randint(3, vocab, (count, TEXT_LENGTH)),
    }


def _steps(model: ASRDogeForConditionalGeneration, count: int, vocab: int) -> None:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)  # as transformers chooses
    model.train()
    for _ in range(2):
        loss = model(**_batch(model, count, vocab)).loss
        assert loss is not None
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def _memory(field: str) -> int:
    """Bytes of this process: VmRSS, what it holds, or VmHWM, the most it has held."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    main()
