"""Convert Whisper from CTranslate2's format (`model.bin`) to the folder that transformers reads.

Promises: every weight of the file is in the model and vice versa, with unchanged value (a 16-bit number is exact in 32
bits); a file that is damaged or of another model is a CheckpointError that says so.
It does not know where files come from, and does not support quantized ones.
Sources: `ctranslate2.specs.model_spec.ModelSpec._serialize` for the file, `ctranslate2.converters.transformers` for the
names; https://github.com/OpenNMT/CTranslate2 (MIT).
"""

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)
from transformers.utils import SAFE_WEIGHTS_NAME

from asr_doge.errors import CheckpointError
from asr_doge.models.weights import check_keys, check_shapes

_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_SPECIFICATION = "WhisperSpec"
_END = "<|endoftext|>"

Variables = dict[str, NDArray[Any]]


def read_variables(content: bytes) -> Variables:
    """The arrays of a `model.bin`, by their names.

    Raises:
        CheckpointError: it is not a `model.bin` of Whisper, or is truncated.
    """
    try:
        return _Reader(content).variables()
    except (struct.error, KeyError, ValueError, UnicodeDecodeError) as error:
        raise CheckpointError(f"model.bin is damaged or not CTranslate2's ({error}): fetch it again") from error


class _Reader:
    """Reads a `model.bin` once, from start to end."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.position = 0

    def variables(self) -> Variables:
        version = self._number("I")
        if version < 6:  # of 2023, when aliases had come; nothing older is published that we know of
            raise ValueError(f"its format is version {version}, not 6")
        specification, _ = self._text(), self._number("I")
        if specification != _SPECIFICATION:
            raise ValueError(f"it holds {specification!r}, not {_SPECIFICATION}")
        found = dict(self._variable() for _ in range(self._number("I")))
        for _ in range(self._number("I")):
            alias, name = self._text(), self._text()
            found[alias] = found[name]
        if self.position != len(self.content):
            raise ValueError(f"{len(self.content) - self.position} bytes follow its end")
        return found

    def _variable(self) -> tuple[str, NDArray[Any]]:
        name = self._text()
        shape = [self._number("I") for _ in range(self._number("B"))]
        kind = _TYPES[self._number("B")]
        return name, np.frombuffer(self._bytes(self._number("I")), dtype=kind).reshape(shape)

    def _number(self, code: str) -> int:
        return int(struct.unpack("<" + code, self._bytes(struct.calcsize("<" + code)))[0])

    def _text(self) -> str:
        return self._bytes(self._number("H"))[:-1].decode()  # ends with a zero

    def _bytes(self, count: int) -> bytes:
        block = self.content[self.position : self.position + count]
        if len(block) < count:
            raise ValueError(f"it breaks off after {len(self.content):,} bytes")
        self.position += count
        return block


def whisper_weights(variables: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """The weights by the names of `WhisperForConditionalGeneration`, in float32.

    Raises:
        CheckpointError: a part is missing, or weights are quantized.
    """
    try:
        return dict(_parts(variables))
    except KeyError as error:
        raise CheckpointError(f"model.bin has no {error}: it is not a whole Whisper") from error


def _parts(variables: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, Tensor]]:
    def tensor(name: str) -> Tensor:
        if variables[name].dtype.kind != "f":
            raise CheckpointError(f"model.bin has {name} quantized: only 16-bit and 32-bit weights can be used")
        return torch.from_numpy(variables[name].astype(np.float32))

    def norm(name: str, source: str) -> Iterator[tuple[str, Tensor]]:
        yield f"{name}.weight", tensor(f"{source}/gamma")
        yield f"{name}.bias", tensor(f"{source}/beta")

    def linear(source: str, *names: str) -> Iterator[tuple[str, Tensor]]:
        """One matrix, or several that CTranslate2 stores as one; Whisper's keys have no bias, stored as zeros."""
        for part in ("weight", "bias"):
            for name, rows in zip(names, tensor(f"{source}/{part}").chunk(len(names)), strict=True):
                if part == "bias" and name.endswith("k_proj"):
                    if rows.any():
                        raise CheckpointError(f"model.bin has a bias for {name}: it is not Whisper's")
                    continue
                yield f"{name}.{part}", rows.clone()

    def attention(name: str, source: str) -> Iterator[tuple[str, Tensor]]:
        """Self-attention."""
        yield from norm(f"{name}.self_attn_layer_norm", f"{source}/self_attention/layer_norm")
        projections = [f"{name}.self_attn.{part}_proj" for part in "qkv"]
        yield from linear(f"{source}/self_attention/linear_0", *projections)
        yield from linear(f"{source}/self_attention/linear_1", f"{name}.self_attn.out_proj")

    def feed_forward(name: str, source: str) -> Iterator[tuple[str, Tensor]]:
        yield from norm(f"{name}.final_layer_norm", f"{source}/ffn/layer_norm")
        yield from linear(f"{source}/ffn/linear_0", f"{name}.fc1")
        yield from linear(f"{source}/ffn/linear_1", f"{name}.fc2")

    def cross_attention(name: str, source: str) -> Iterator[tuple[str, Tensor]]:
        """Attention of the decoder to the encoder's output."""
        yield from norm(f"{name}.encoder_attn_layer_norm", f"{source}/attention/layer_norm")
        yield from linear(f"{source}/attention/linear_0", f"{name}.encoder_attn.q_proj")
        projections = [f"{name}.encoder_attn.{part}_proj" for part in "kv"]
        yield from linear(f"{source}/attention/linear_1", *projections)
        yield from linear(f"{source}/attention/linear_2", f"{name}.encoder_attn.out_proj")

    for convolution in ("conv1", "conv2"):
        yield from linear(f"encoder/{convolution}", f"model.encoder.{convolution}")
    yield "model.decoder.embed_tokens.weight", tensor("decoder/embeddings/weight")
    for half in ("encoder", "decoder"):
        yield f"model.{half}.embed_positions.weight", tensor(f"{half}/position_encodings/encodings")
        yield from norm(f"model.{half}.layer_norm", f"{half}/layer_norm")
        for index in range(_num_layers(variables, half)):
            name, source = f"model.{half}.layers.{index}", f"{half}/layer_{index}"
            yield from attention(name, source)
            yield from feed_forward(name, source)
            if half == "decoder":
                yield from cross_attention(name, source)


def _num_layers(variables: Mapping[str, NDArray[Any]], half: str) -> int:
    parts = [name.split("/")[1].removeprefix("layer_") for name in variables if name.startswith(f"{half}/layer_")]
    return 1 + max((int(part) for part in parts if part.isdigit()), default=-1)


def convert_whisper(model_bin: bytes, settings: Mapping[str, Any], tokenizer: bytes, folder: Path) -> None:
    """Write a folder with the files, and the weights in the type, that the hub has of the same model.

    Args:
        model_bin: content of CTranslate2's `model.bin`.
        settings: of its `config.json`.
        tokenizer: content of `tokenizer.json`, which is the hub's own.
        folder: where to write; created if necessary.

    Raises:
        CheckpointError: as `read_variables` and `whisper_weights`; or names or shapes are not Whisper's.
    """
    variables = read_variables(model_bin)
    weights = whisper_weights(variables)
    config = _whisper_config(variables, settings, tokenizer)
    with init_empty_weights():
        wanted = WhisperForConditionalGeneration(config).state_dict()
    del wanted["proj_out.weight"]  # the same tensor as the embedding
    check_keys(wanted, weights, "model.bin")
    check_shapes(wanted, weights, "model.bin")
    config.save_pretrained(folder)
    _generation_config(config, settings, tokenizer).save_pretrained(folder)
    save_file(weights, folder / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
    WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tokenizer)
    AutoTokenizer.from_pretrained(folder, pad_token=_END).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tokenizer)  # unchanged, not as the library would write it today


def _whisper_config(
    variables: Mapping[str, NDArray[Any]], settings: Mapping[str, Any], tokenizer: bytes
) -> WhisperConfig:
    ids = _special_ids(tokenizer)
    vocabulary, width = variables["decoder/embeddings/weight"].shape
    return WhisperConfig(
        vocab_size=vocabulary,
        num_mel_bins=variables["encoder/conv1/weight"].shape[1],
        d_model=width,
        encoder_layers=_num_layers(variables, "encoder"),
        decoder_layers=_num_layers(variables, "decoder"),
        encoder_attention_heads=int(variables["encoder/num_heads"]),
        decoder_attention_heads=int(variables["decoder/num_heads"]),
        encoder_ffn_dim=variables["encoder/layer_0/ffn/linear_0/weight"].shape[0],
        decoder_ffn_dim=variables["decoder/layer_0/ffn/linear_0/weight"].shape[0],
        max_source_positions=variables["encoder/position_encodings/encodings"].shape[0],
        max_target_positions=variables["decoder/position_encodings/encodings"].shape[0],
        bos_token_id=ids[_END],
        eos_token_id=ids[_END],
        pad_token_id=ids[_END],
        decoder_start_token_id=ids["<|startoftranscript|>"],
        suppress_tokens=settings["suppress_ids"],
        begin_suppress_tokens=settings["suppress_ids_begin"],
        architectures=["WhisperForConditionalGeneration"],
        dtype="float32",
    )


def _generation_config(config: WhisperConfig, settings: Mapping[str, Any], tokenizer: bytes) -> GenerationConfig:
    """Whisper's generation settings: its first tokens, the tokens it never generates, its languages and tasks."""
    ids = _special_ids(tokenizer)
    # An English model has the tokens of other languages too, but was not trained on them.
    is_multilingual = config.vocab_size >= 51_865
    names = {number: name for name, number in ids.items()}
    languages = {names[number]: number for number in settings["lang_ids"] if number in names}
    tasks = {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")}
    # The task is explicit: without it, or a language, transformers gives the decoder no start tokens.
    spoken = {"lang_to_id": languages, "task_to_id": tasks, "task": "transcribe"}
    return GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
        max_length=config.max_target_positions,
        suppress_tokens=config.suppress_tokens,
        begin_suppress_tokens=config.begin_suppress_tokens,
        alignment_heads=settings["alignment_heads"],
        is_multilingual=is_multilingual,
        return_timestamps=False,
        max_initial_timestamp_index=50,
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        **(spoken if is_multilingual else {}),
    )


def _special_ids(tokenizer: bytes) -> dict[str, int]:
    return {token["content"]: token["id"] for token in json.loads(tokenizer)["added_tokens"]}
