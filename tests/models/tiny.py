"""Tiny random models of the real classes, on disk as their publishers lay them out.

The weights are far larger than a fresh model's: with standard deviations of 0.02 every output is nearly the same, and a
test that compares two of them cannot fail.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    DogeConfig,
    DogeForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteSpeechConfig,
    GraniteSpeechForConditionalGeneration,
    GraniteSpeechPlusConfig,
    GraniteSpeechPlusForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from asr_doge.audio.log_mel import FEATURE_SIZE
from asr_doge.models.punctuation import Punctuator, punctuation_config

SENTENCES = (
    "the quick brown fox jumps over the lazy dog",
    "she sells sea shells by the sea shore",
    "transcribe the following audio: it's nine o'clock and all is well",
)
SPEECH_SIZE = 24
TEXT_SIZE = 32


def randomize(model: nn.Module, seed: int) -> None:
    """Weights under which every output depends visibly on every input."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
            if ("norm" in name and name.endswith("weight")) or "residual" in name:
                parameter.add_(1.0)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0.0, 0.3, generator=generator)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5, generator=generator)


def granite_config(context_size: int = 200, window_size: int = 15) -> GraniteSpeechConfig:
    """Published shapes in time, tiny ones elsewhere; dropout so high that a forgotten `eval` is seen."""
    return GraniteSpeechConfig(
        encoder_config={
            "input_dim": FEATURE_SIZE,
            "num_layers": 2,
            "hidden_dim": 16,
            "num_heads": 2,
            "dim_head": 8,
            "output_dim": 128,
            "context_size": context_size,
            "max_pos_emb": 512,
            "conv_kernel_size": 15,
            "conv_expansion_factor": 2,
            "feedforward_mult": 2,
            "dropout": 0.5,
        },
        projector_config={
            "model_type": "blip_2_qformer",
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "encoder_hidden_size": 16,
            "cross_attention_frequency": 1,
            "hidden_dropout_prob": 0.5,
            "attention_probs_dropout_prob": 0.5,
        },
        text_config={
            "model_type": "granite",
            "hidden_size": SPEECH_SIZE,
            "vocab_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "intermediate_size": 32,
        },
        audio_token_index=63,
        window_size=window_size,
        downsample_rate=5,
    )


def granite_model(config: GraniteSpeechConfig | None = None, seed: int = 0) -> GraniteSpeechForConditionalGeneration:
    """The full upstream model, language model and all."""
    model = GraniteSpeechForConditionalGeneration(config or granite_config())
    randomize(model, seed)
    return model.eval()


def granite_plus_model(seed: int = 0) -> GraniteSpeechPlusForConditionalGeneration:
    """Whose projector reads the input of the first layer, the states of the second and third, and the last."""
    settings = granite_config().to_dict()
    settings["encoder_config"] |= {
        "model_type": "granite_speech_plus_encoder",
        "num_layers": 4,
        "cat_hidden_layers": [0, 2, 3],
    }
    settings["projector_config"]["encoder_hidden_size"] = 4 * settings["encoder_config"]["hidden_dim"]
    names = ("encoder_config", "projector_config", "text_config", "audio_token_index", "window_size", "downsample_rate")
    config = GraniteSpeechPlusConfig(**{name: settings[name] for name in names})
    model = GraniteSpeechPlusForConditionalGeneration(config)
    randomize(model, seed)
    return model.eval()


def whisper_model(seed: int = 0) -> WhisperForConditionalGeneration:
    """Whisper reads 30 s whatever its size."""
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=64,
            num_mel_bins=80,
            encoder_layers=2,
            encoder_attention_heads=2,
            decoder_layers=1,
            decoder_attention_heads=2,
            decoder_ffn_dim=32,
            encoder_ffn_dim=32,
            d_model=16,
            dropout=0.5,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        )
    )
    randomize(model, seed)
    return model.eval()


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the published kind: bos 0, eos 1, pad 2."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def doge_model(vocab_size: int, seed: int = 0) -> DogeForCausalLM:
    """Doge with tied embeddings, as published."""
    model = DogeForCausalLM(
        DogeConfig(
            vocab_size=vocab_size,
            hidden_size=TEXT_SIZE,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        )
    )
    randomize(model, seed)
    return model.eval()


def llama_model(vocab_size: int, seed: int = 0) -> LlamaForCausalLM:
    """Another family: untied embeddings."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=TEXT_SIZE,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        )
    )
    randomize(model, seed)
    return model.eval()


def gpt2_model(vocab_size: int, seed: int = 0) -> GPT2LMHeadModel:
    """A third family: positions are learned and absolute, so padding must not be counted."""
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab_size, n_embd=TEXT_SIZE, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1, pad_token_id=2
        )
    )
    randomize(model, seed)
    return model.eval()


def punctuator(seed: int = 0) -> Punctuator:
    """A model for case and punctuation that gives words many different forms."""
    words = tokenizer()
    model = ModernBertForTokenClassification(punctuation_config(words, 32, 1))
    randomize(model, seed)
    nn.init.zeros_(model.classifier.bias)
    return Punctuator(model, words)


def save_language_model(model: PreTrainedModel, folder: Path) -> Path:
    """A language model's folder with its tokenizer."""
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def random_clips(lengths: Sequence[int], size: int = FEATURE_SIZE, seed: int = 0) -> list[Tensor]:
    """Clips `[T, size]` of input features (or speech embeddings) in float64."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, size, generator=generator, dtype=torch.float64) for length in lengths]


def padded(clips: Sequence[Tensor], padding: float = 0.0, extra: int = 0) -> tuple[Tensor, Tensor]:
    """A batch `[B, T, F]` and its mask `[B, T]`, with `padding` in the padding and `extra` frames of it at the end."""
    batch = pad_sequence([*clips, clips[0].new_zeros(max(map(len, clips)) + extra, clips[0].shape[1])], True, padding)
    mask = torch.zeros(len(clips), batch.shape[1], dtype=torch.long)
    for row, clip in zip(mask, clips, strict=True):
        row[: len(clip)] = 1
    return batch[:-1], mask


def random_waveform(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    """Noise whose loudness and colour change over time."""
    rng = np.random.default_rng(seed)
    samples = round(seconds * 16_000)
    noise = rng.standard_normal(samples) + np.sin(np.cumsum(rng.uniform(0, 1, samples)))
    return (0.1 * noise * (1.1 + np.sin(np.arange(samples) / 3000))).astype(np.float32)


def relative_difference(a: Tensor, b: Tensor) -> float:
    """Largest difference of two tensors, in units of the second's spread."""
    return float(((a - b).abs().max() / b.std()).detach())
