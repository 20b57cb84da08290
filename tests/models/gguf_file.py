"""A small Qwen2 as llama.cpp's own package writes GGUF files, its names restated from `gguf.tensor_mapping`."""

import json
from pathlib import Path
from typing import Any

import gguf
import torch
from tokenizers import Tokenizer
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.models import tiny

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def qwen2_model() -> Qwen2ForCausalLM:
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tiny.tokenizer()),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            tie_word_embeddings=False,
        )
    )
    tiny.randomize(model, seed=4)
    return model.eval()


def write(path: Path, model: Qwen2ForCausalLM, architecture: str = "qwen2") -> None:
    """Write a file with 32-bit weights and a byte-level tokenizer."""
    config: Any = model.config
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    _write_tokenizer(writer)
    for name, tensor in model.state_dict().items():
        writer.add_tensor(_gguf_name(name), tensor.to(torch.float32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_tokenizer(writer: gguf.GGUFWriter) -> None:
    tokenizer = tiny.tokenizer()
    bpe: Tokenizer = tokenizer.backend_tokenizer
    vocabulary = bpe.get_vocab()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(sorted(vocabulary, key=lambda token: vocabulary[token]))
    special = set(tokenizer.all_special_ids)
    writer.add_token_types([3 if number in special else 1 for number in range(len(vocabulary))])
    writer.add_token_merges([" ".join(merge) for merge in json.loads(bpe.to_str())["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(2)


def _gguf_name(name: str) -> str:
    owner, _, part = name.rpartition(".")
    if owner in _NAMES:
        return f"{_NAMES[owner]}.{part}"
    _, _, number, own = owner.split(".", 3)
    return f"blk.{number}.{_NAMES[own]}.{part}"
