"""Whisper as CTranslate2's own converter writes it, restated from its sources for tests.

`ctranslate2.specs.model_spec.ModelSpec._serialize` (the file) and `ctranslate2.converters.transformers.WhisperLoader`
(the names; matrices that read the same input are one) of CTranslate2 4.8.
"""

import json
import struct

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, cat, zeros
from transformers import WhisperForConditionalGeneration

SETTINGS = {
    "alignment_heads": [[0, 1]],
    "lang_ids": [],
    "suppress_ids": [1, 2],
    "suppress_ids_begin": [3],
}

_TYPE_IDS = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}


def tokenizer_json() -> bytes:
    """Bytes as tokens, and Whisper's special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:40]
    bpe = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    names = ("endoftext", "startoftranscript", "en", "translate", "transcribe", "startofprev", "notimestamps")
    bpe.add_special_tokens([AddedToken(f"<|{name}|>", special=True) for name in names])
    return json.dumps(json.loads(bpe.to_str())).encode()


def model_bin(
    model: WhisperForConditionalGeneration, kind: str = "float16", specification: str = "WhisperSpec"
) -> bytes:
    """The file, with its weights in 16 bits."""
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    arrays: dict[str, NDArray[np.generic]] = {
        name: _array(tensor).astype(kind) for name, tensor in _variables(weights, model.config.encoder_layers).items()
    }
    for half, heads in (
        ("encoder", model.config.encoder_attention_heads),
        ("decoder", model.config.decoder_attention_heads),
    ):
        arrays[f"{half}/num_heads"] = np.int16(heads)[()].reshape(())
    content = struct.pack("<I", 6) + _text(specification) + struct.pack("<II", 3, len(arrays))
    for name, array in sorted(arrays.items()):
        content += _text(name) + struct.pack("<B", array.ndim) + struct.pack(f"<{array.ndim}I", *array.shape)
        content += struct.pack("<BI", _TYPE_IDS[str(array.dtype)], array.nbytes) + array.tobytes()
    return content + struct.pack("<I", 1) + _text("decoder/projection/weight") + _text("decoder/embeddings/weight")


def _array(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.float().numpy()
    return array


def _text(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def _variables(weights: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    found = {
        "encoder/position_encodings/encodings": weights["model.encoder.embed_positions.weight"],
        "decoder/position_encodings/encodings": weights["model.decoder.embed_positions.weight"],
        "decoder/embeddings/weight": weights["model.decoder.embed_tokens.weight"],
    }

    def linear(source: str, *names: str) -> None:
        found[f"{source}/weight"] = cat([weights[f"{name}.weight"] for name in names])
        width = len(weights[f"{names[0]}.weight"])
        found[f"{source}/bias"] = cat([weights.get(f"{name}.bias", zeros(width)) for name in names])

    def norm(source: str, name: str) -> None:
        found[f"{source}/gamma"], found[f"{source}/beta"] = weights[f"{name}.weight"], weights[f"{name}.bias"]

    linear("encoder/conv1", "model.encoder.conv1")
    linear("encoder/conv2", "model.encoder.conv2")
    for half in ("encoder", "decoder"):
        norm(f"{half}/layer_norm", f"model.{half}.layer_norm")
    for half, index in [("encoder", i) for i in range(layers)] + [("decoder", 0)]:
        source, name = f"{half}/layer_{index}", f"model.{half}.layers.{index}"
        norm(f"{source}/self_attention/layer_norm", f"{name}.self_attn_layer_norm")
        linear(f"{source}/self_attention/linear_0", *(f"{name}.self_attn.{part}_proj" for part in "qkv"))
        linear(f"{source}/self_attention/linear_1", f"{name}.self_attn.out_proj")
        norm(f"{source}/ffn/layer_norm", f"{name}.final_layer_norm")
        linear(f"{source}/ffn/linear_0", f"{name}.fc1")
        linear(f"{source}/ffn/linear_1", f"{name}.fc2")
        if half == "decoder":
            norm(f"{source}/attention/layer_norm", f"{name}.encoder_attn_layer_norm")
            linear(f"{source}/attention/linear_0", f"{name}.encoder_attn.q_proj")
            linear(f"{source}/attention/linear_1", *(f"{name}.encoder_attn.{part}_proj" for part in "kv"))
            linear(f"{source}/attention/linear_2", f"{name}.encoder_attn.out_proj")
    return found
