"""The ONNX graphs of `asr-doge export` beside PyTorch, stage by stage.

    asr-doge export --output_dir ./onnx
    OMP_NUM_THREADS=1 python bench/export.py --onnx_dir ./onnx

Promises: both run the same inputs, batch 1, on as many threads as PyTorch has, in turns; the time is the processor's,
the least of `--runs` after one that is not counted.
It does not know accuracy: an export that differs from the model is never written.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnxruntime import InferenceSession, SessionOptions

from asr_doge.models import load_model
from asr_doge.models.export import ENCODER_GRAPH, LANGUAGE_MODEL_GRAPH, SPEECH_TOKEN, EncoderGraph, LanguageModelGraph


def least(function: Callable[[], Any], other: Callable[[], Any], runs: int) -> tuple[float, float]:
    """Least processor time of two ways, in milliseconds, called in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs + 1):
        for way, taken in zip((function, other), times, strict=True):
            start = time.process_time()
            way()
            taken.append(1000 * (time.process_time() - start))
    return min(times[0][1:]), min(times[1][1:])


def main() -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--onnx_dir", type=Path, required=True, help="what asr-doge export wrote")
    parser.add_argument("--checkpoint_dir", default="nano", help="of which checkpoint (default nano)")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the clip (default 10)")
    parser.add_argument("--runs", type=int, default=20, help="timed runs of each, after one more (default 20)")
    options = parser.parse_args()
    loaded = load_model(options.checkpoint_dir, device="cpu")
    model = loaded.model
    rate = loaded.speech_encoder.sampling_rate
    noise = 0.1 * np.random.default_rng(0).standard_normal(round(options.seconds * rate), dtype=np.float32)
    inputs = loaded.processor(audio=[noise], sampling_rate=rate)
    clip = (inputs["input_features"], inputs["attention_mask"].sum(dim=1))
    threads = SessionOptions()
    threads.intra_op_num_threads = torch.get_num_threads()
    with torch.inference_mode():
        cache = torch.zeros(json.loads((options.onnx_dir / "settings.json").read_text())["empty_cache_shape"])
        speech_encoder, state = EncoderGraph(model).eval(), LanguageModelGraph(model).eval()
        speech = speech_encoder(*clip)[0]
        prompt = torch.tensor([[*(model.config.prompt_ids or []), *[SPEECH_TOKEN] * speech.shape[1]]])
        prefill = (prompt, speech, torch.ones_like(prompt), cache)
        read = state(*prefill)[1]
        token = (prompt[:, :1], speech, torch.ones(1, prompt.shape[1] + 1, dtype=torch.long), read)
        encode = (clip[0], inputs["attention_mask"])
        for name, file, values, ours in (
            ("encoder and adapter", ENCODER_GRAPH, clip, lambda: model.adapter(*_embeddings(model.encode(*encode)))),
            ("prompt and speech", LANGUAGE_MODEL_GRAPH, prefill, lambda: state(*prefill)),
            ("one token", LANGUAGE_MODEL_GRAPH, token, lambda: state(*token)),
        ):
            session = InferenceSession(options.onnx_dir / file, threads, providers=["CPUExecutionProvider"])
            names = [each.name for each in session.get_inputs()]
            feed = {each: value.numpy() for each, value in zip(names, values, strict=True)}
            torch_ms, onnx_ms = least(ours, partial(session.run, None, feed), options.runs)
            print(f"{name:<20} PyTorch {torch_ms:7.2f} ms   onnxruntime {onnx_ms:7.2f} ms   {onnx_ms / torch_ms:.2f}")
    return 0


def _embeddings(encoded: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return encoded.speech_embeddings, encoded.speech_lengths


if __name__ == "__main__":
    sys.exit(main())
