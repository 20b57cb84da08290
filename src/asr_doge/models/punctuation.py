"""A small model that restores case and punctuation of recognized words: a transformer that labels each word.

Promises: it changes no word, only how it is written; a text of any length is read in windows that overlap, and what
becomes of a window does not depend on those read beside it. It is a folder `punctuation` beside a checkpoint's weights,
`ModernBertForTokenClassification` with a tokenizer, as transformers writes them; no pickle is read.
It does not know audio: a pause says nothing to it.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, ModernBertConfig, ModernBertForTokenClassification, PreTrainedTokenizerBase

from asr_doge.errors import CheckpointError, first_line
from asr_doge.models.checkpoints import Reference
from asr_doge.models.weights import load_weights
from asr_doge.text.punctuation import LABELS, SENTENCE_MARKS, write_word

FOLDER = "punctuation"
"""Name of its folder in that of a checkpoint."""
WINDOW_WORDS = 60
"""Words that it reads at once."""
CONTEXT_WORDS = 10
"""Words at each end of a window that only help with the others, unless the text begins or ends there."""
WORD_TOKENS = 8
"""Tokens that are read of a word, its last ones."""
_BATCH = 32
_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def punctuation_config(tokenizer: PreTrainedTokenizerBase, hidden_dim: int, layers: int) -> ModernBertConfig:
    """The shape of a model for the tokens of a tokenizer."""
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_dim,
        intermediate_size=2 * hidden_dim,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden_dim // 32),
        max_position_embeddings=WINDOW_WORDS * WORD_TOKENS,
        layer_types=["full_attention"] * layers,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        cls_token_id=tokenizer.bos_token_id,
        sep_token_id=tokenizer.eos_token_id,
    )
    config.num_labels = len(LABELS)
    return config


def word_tokens(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> list[list[int]]:
    """Token ids of each word by itself, as within a text; at least one of each."""
    rows = tokenizer([f" {word}" for word in words], add_special_tokens=False).input_ids if words else []
    return [row[-WORD_TOKENS:] or [tokenizer.pad_token_id] for row in rows]


def word_batch(windows: Sequence[Sequence[Sequence[int]]]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Windows of words' tokens as the model reads them, `[B, N]`, and where in its row each word ends, `[words]`."""
    rows = [torch.tensor([token for word in window for token in word]) for window in windows]
    ends = [torch.tensor([len(word) for word in window]).cumsum(0) - 1 for window in windows]
    masks = [torch.ones_like(row) for row in rows]
    batch = {
        "input_ids": pad_sequence(rows, batch_first=True),
        "attention_mask": pad_sequence(masks, batch_first=True),
    }
    return batch, ends


class Punctuator:
    """Writes plain words with case and punctuation, by the label that the model gives the last token of each word."""

    def __init__(self, model: ModernBertForTokenClassification, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer

    def write(self, words: Sequence[str]) -> list[str]:
        """Each word as it is written in a text of them all; a word that begins a sentence gets a capital letter."""
        forms = [LABELS[label] for label in self.labels(words)]
        for place, form in enumerate(forms):
            if form.case == "lower" and (not place or forms[place - 1].mark in SENTENCE_MARKS):
                forms[place] = replace(form, case="capital")
        return [write_word(word, form) for word, form in zip(words, forms, strict=True)]

    @torch.inference_mode()
    def labels(self, words: Sequence[str]) -> list[int]:
        """The id in `LABELS` of each word's form."""
        tokens = word_tokens(self.tokenizer, words)
        step = WINDOW_WORDS - 2 * CONTEXT_WORDS
        starts = range(0, max(len(words) - 2 * CONTEXT_WORDS, 1), step) if words else range(0)
        labels: list[int] = []
        for place in range(0, len(starts), _BATCH):
            batch, ends = word_batch([tokens[start : start + WINDOW_WORDS] for start in starts[place : place + _BATCH]])
            batch = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
            best = self.model(**batch).logits.argmax(dim=-1)
            for start, row, end in zip(starts[place : place + _BATCH], best, ends, strict=True):
                labels += row[end].tolist()[len(labels) - start :]  # the later window decides on its own context
                if start != starts[-1]:
                    del labels[start + WINDOW_WORDS - CONTEXT_WORDS :]
        return labels


def load_punctuator(reference: Reference) -> Punctuator:
    """The model that comes with a checkpoint.

    Raises:
        CheckpointError: none does, or it cannot be read.
    """
    files = [reference.file(f"{FOLDER}/{name}") for name in _FILES]
    if None in files:
        raise CheckpointError(
            f"--text written: '{reference.name}' has no {FOLDER}/{_FILES[files.index(None)]}: copy that of english, or"
            " make one with asr-doge pretrain punctuation"
        )
    folder = cast(Path, files[0]).parent
    config, model = _built(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # damaged files make tokenizers raise anything
        raise CheckpointError(f"{folder} cannot be used: {first_line(error)}") from error
    load_weights(model, Reference(str(folder), folder), lambda key: key, f"punctuation model '{folder}'", torch.float32)
    if config.num_labels != len(LABELS):
        raise CheckpointError(f"{folder} has {config.num_labels} labels, not {len(LABELS)}: give it another model")
    return Punctuator(model, tokenizer)


def count_punctuation_parameters(reference: Reference) -> int:
    """Parameters of the model that comes with a checkpoint, by its configuration alone; 0 if none does.

    Raises:
        CheckpointError: the configuration cannot be read.
    """
    path = reference.file(f"{FOLDER}/{_FILES[0]}")
    if path is None:
        return 0
    with torch.device("meta"):
        return _built(path.parent)[1].num_parameters()


def _built(folder: Path) -> tuple[ModernBertConfig, ModernBertForTokenClassification]:
    """The configuration in a folder, and a model of this shape with random weights."""
    try:
        config = ModernBertConfig.from_pretrained(folder)
        return config, ModernBertForTokenClassification(config)
    except Exception as error:  # damaged files make transformers raise anything
        raise CheckpointError(f"{folder} cannot be used: {first_line(error)}") from error
