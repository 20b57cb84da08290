"""Why the fast paths are what they are: single layers at published sizes, each done in several ways.

    OMP_NUM_THREADS=1 python bench/layers.py

Promises: the least processor time of several calls, in milliseconds, the ways of a layer taking turns.
It does not know whole models (see bench/speed.py).
"""

import sys
import time
import warnings
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, DynamicCache, StaticCache
from transformers.models.granite_speech.modeling_granite_speech import GraniteSpeechConformerDepthWiseConv1d

from asr_doge.models.configuration_asr_doge import published_text_config
from asr_doge.models.encoders.granite_speech import _depthwise, _distances, _relative_bias
from asr_doge.models.language_model import build_language_model
from asr_doge.models.quantization import Int8Linear, _floating_products, _integer_products

ROUNDS = 5
GROUP = 32
"""Inputs that share a scale in 4-bit weights."""
PRODUCTS = {
    "encoder, 500 frames": (500, 1024, 4096),
    "language model, 140 positions": (140, 1024, 2048),
    "language model, 1 position": (1, 1024, 2048),
    "head, 1 position": (1, 1024, 32768),
}


def least_milliseconds(ways: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Processor time of each way."""
    least = dict.fromkeys(ways, float("inf"))
    for turn in range(ROUNDS + 1):
        for name, way in ways.items():
            start = time.process_time()
            way()
            if turn:  # the first one warms up
                least[name] = min(least[name], 1000 * (time.process_time() - start))
    return least


def products(rows: int, inputs: int, outputs: int) -> dict[str, Callable[[], object]]:
    """A linear layer in 32, 8 and 4 bits."""
    layer = nn.Linear(inputs, outputs, bias=False)
    int8 = Int8Linear(layer.weight, None)
    x = torch.randn(rows, inputs)
    half = x.bfloat16()
    int4 = torch._convert_weight_to_int4pack_for_cpu(torch.randint(0, 15, (outputs, inputs), dtype=torch.int32), 1)
    scales = torch.rand(inputs // GROUP, outputs, 2, dtype=torch.bfloat16)
    half_weight = layer.weight.bfloat16()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, which is why it is only compared with
        dynamic = torch.ao.quantization.quantize_dynamic(nn.Sequential(layer), {nn.Linear}, dtype=torch.qint8)
    return {
        "float32": lambda: layer(x),
        "bfloat16": lambda: F.linear(half, half_weight),
        "int8 (ours)": lambda: int8(x),
        "int8, as integers": lambda: _integer_products(x, int8.weight),
        "int8, converted": lambda: _floating_products(x, int8.weight),
        "int8 (quantize_dynamic)": lambda: dynamic(x),
        "int4 weights": lambda: torch._weight_int4pack_mm_for_cpu(half, int4, GROUP, scales),
    }


def convolutions(frames: int = 500, channels: int = 2048, kernel: int = 15) -> dict[str, Callable[[], object]]:
    """The conformer's depthwise convolution."""
    module = GraniteSpeechConformerDepthWiseConv1d(channels, channels, kernel)
    x = torch.randn(frames, channels)
    return {"upstream": lambda: module(x.T[None]), "ours": lambda: _depthwise(module, x)}


def relative_positions(
    blocks: int = 3, block: int = 200, heads: int = 8, size: int = 128
) -> dict[str, Callable[[], object]]:
    """Shaw's relative positions: the bias of every pair, from the embeddings."""
    query = torch.randn(blocks, block, heads, size)
    embedding = nn.Embedding(2 * 512 + 1, size)
    of_pairs = torch.arange(block)[:, None] - torch.arange(block) + 512
    distances = _distances(of_pairs)

    def upstream() -> Tensor:
        return torch.einsum("bhcd,crd->bhcr", query.transpose(1, 2), embedding(of_pairs))

    return {"upstream": upstream, "ours": lambda: _relative_bias(query, embedding(distances))}


def tokens(layers: int = 4, before: int = 140) -> dict[str, Callable[[], object]]:
    """A token written after others, by some of Doge-320M's layers and its head."""
    config = published_text_config()
    config.num_hidden_layers = layers
    model = build_language_model(config).eval()
    compiled = torch.compile(model)

    def step(extend: Callable[..., object], cache: Cache) -> Callable[[], object]:
        model(torch.ones(1, before, dtype=torch.long), past_key_values=cache)
        return lambda: extend(torch.ones(1, 1, dtype=torch.long), past_key_values=cache)

    def static() -> StaticCache:
        return StaticCache(config=config, max_cache_len=before + 60)

    return {
        "growing cache": step(model, DynamicCache(config=config)),
        "static cache": step(model, static()),
        "compiled, static cache": step(compiled, static()),
    }


@torch.inference_mode()
def main() -> int:
    """Run the script."""
    cases = {name: products(*sizes) for name, sizes in PRODUCTS.items()}
    cases |= {"depthwise convolution": convolutions(), "relative positions": relative_positions()}
    cases["a token, 4 layers"] = tokens()
    for name, ways in cases.items():
        print(name)
        for way, milliseconds in least_milliseconds(ways).items():
            print(f"  {way:<24} {milliseconds:8.2f} ms", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
