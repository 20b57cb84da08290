"""A small language model from nothing, on text alone: the recipe behind the language model of the bundled `english`.

Promises: a byte-level BPE vocabulary and a Doge model, both made of nothing but the sentences it is given, in the form
transcripts are trained on; an example reads `[bos] text [eos]`, so that what it learns is the probability of a
transcript (see `asr_doge.decoding.fusion`). Same seed and machine, same weights; an interrupted run continues at its
last checkpoint. Sentences of the manifests it is told to leave out are not read.
It does not know audio.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast, Trainer, set_seed

from asr_doge.data.manifest import read_manifest
from asr_doge.data.text_files import read_lines
from asr_doge.errors import DataError
from asr_doge.models.language_model import build_language_model, small_doge_config
from asr_doge.models.layout import IGNORED_LABEL
from asr_doge.text.normalization import normalize_training_text
from asr_doge.training.arguments import pretraining_arguments, train_or_resume
from asr_doge.training.pretraining_configuration import PretrainLanguageModelConfig
from asr_doge.training.pretraining_text import build_text_tokenizer
from asr_doge.training.recipes import refuse_another_recipe, store_recipe

DEV_EVERY = 200
"""One sentence in this many is kept out of training, for the dev loss."""
LONGEST = 64
"""Tokens of a sentence; longer ones are cut there."""
_DEV_BATCH = 32

Collate = Callable[[Sequence[Sequence[Sequence[int]]]], dict[str, Tensor]]


def read_texts(config: PretrainLanguageModelConfig) -> list[str]:
    """The sentences, in the form that transcripts are trained on, without those of `without_manifests`.

    Raises:
        DataError: a file cannot be read, or no sentence is left.
    """
    barred = plain_transcripts(config.without_manifests)
    texts: dict[str, None] = {}
    for name in config.text_files:
        texts |= dict.fromkeys(normalize_training_text(line) for line in read_lines(Path(name)))
    kept = [text for text in texts if text and text not in barred]
    if not kept:
        raise DataError("--text_files hold no sentence: give files with a sentence a line")
    return kept


def plain_transcripts(manifests: Sequence[str]) -> set[str]:
    """The transcripts of manifests, in the form that transcripts are trained on."""
    return {
        normalize_training_text(utterance.text) for manifest in manifests for utterance in read_manifest(Path(manifest))
    }


def text_recipe(config: Any) -> dict[str, Any]:
    """The settings that what is made of text depends on."""
    return {name: value for name, value in asdict(config).items() if name != "output_dir"}


def _token_rows(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, cut at `LONGEST`, and the end-of-sequence token."""
    ids = tokenizer(list(texts), add_special_tokens=False).input_ids
    return [[*row[:LONGEST], tokenizer.eos_token_id] for row in ids]


class TokenBatches(Dataset[list[list[int]]]):
    """Batches of sentences of similar length: every pass in another order, drawn from the seed.

    Args:
        rows: token ids of each sentence.
        batch_tokens: of a batch, padding included.
        size: batches.
        seed: of the order.
    """

    def __init__(self, rows: Sequence[Sequence[int]], batch_tokens: int, size: int, seed: int) -> None:
        self.rows = rows
        self.batches: list[list[int]] = []
        rng = np.random.default_rng(seed)
        while len(self.batches) < size:
            self.batches += self._epoch(batch_tokens, rng)
        del self.batches[size:]

    def _epoch(self, batch_tokens: int, rng: np.random.Generator) -> list[list[int]]:
        lengths = np.array([len(row) for row in self.rows])
        order = np.argsort(lengths + rng.random(len(lengths)), kind="stable").tolist()
        batches: list[list[int]] = [[]]
        for index in order:
            if (len(batches[-1]) + 1) * lengths[index] > batch_tokens and batches[-1]:
                batches.append([])
            batches[-1].append(index)
        return [batches[place] for place in rng.permutation(len(batches)).tolist()]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> list[list[int]]:
        return [list(self.rows[row]) for row in self.batches[index]]


def _collate(bos_id: int, batches: Sequence[Sequence[Sequence[int]]]) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask` and `labels`, each `[B, N]`, of one batch, with `bos_id` before every sentence."""
    (rows,) = batches
    sequences = [torch.tensor([bos_id, *row]) for row in rows]
    labels = [torch.tensor([IGNORED_LABEL, *row]) for row in rows]
    return {
        "input_ids": pad_sequence(sequences, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in sequences], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED_LABEL),
    }


def pretrain_language_model(config: PretrainLanguageModelConfig) -> dict[str, float]:
    """Make the language model and write it to `language_model/` in the output folder, loadable by name.

    Returns:
        `dev_loss` in nats a token, `dev_perplexity` of a word, `tokens` trained on in a pass, `parameters`.

    Raises:
        DataError: a file cannot be read.
        ConfigError: the output folder has a run of another recipe.
    """
    folder = Path(config.output_dir) / "stages" / "language_model"
    recipe = text_recipe(config)
    refuse_another_recipe(folder, recipe)
    set_seed(config.seed)
    texts = read_texts(config)
    train = [text for place, text in enumerate(texts) if place % DEV_EVERY]
    dev = texts[::DEV_EVERY]
    tokenizer = build_text_tokenizer(train, config.text_vocab_size)
    collate = partial(_collate, tokenizer.bos_token_id)
    rows = _token_rows(tokenizer, train)
    model = build_language_model(small_doge_config(tokenizer, config.text_hidden_dim, config.text_layers))
    store_recipe(folder, recipe)
    arguments = pretraining_arguments(
        folder,
        config.steps,
        1,  # a batch of tokens
        config.learning_rate,
        config.seed,
        warmup_steps=config.steps // 20,
        weight_decay=0.1,
        adam_beta2=0.95,
        logging_steps=10,
        save_steps=100,
        disable_tqdm=True,
    )
    batches = TokenBatches(rows, config.batch_tokens, config.steps, config.seed)
    trainer = Trainer(model, arguments, data_collator=collate, train_dataset=batches)
    train_or_resume(trainer)
    text_dir = Path(config.output_dir) / "language_model"
    model.save_pretrained(text_dir)
    tokenizer.save_pretrained(text_dir)
    loss, tokens = dev_loss(model, _token_rows(tokenizer, dev), collate)
    results: dict[str, Any] = {
        "parameters": model.num_parameters(),
        "tokens": sum(map(len, rows)),
        "dev_loss": loss,
        "dev_perplexity": math.exp(loss * tokens / sum(len(text.split()) + 1 for text in dev)),
    }
    (text_dir / "pretraining.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


@torch.inference_mode()
def dev_loss(model: torch.nn.Module, rows: Sequence[Sequence[int]], collate: Collate) -> tuple[float, int]:
    """Mean cross-entropy of the tokens of `rows`, in nats, and their number."""
    model.eval()
    device = next(model.parameters()).device
    total, tokens = 0.0, sum(map(len, rows))
    by_length = sorted(rows, key=len)
    for start in range(0, len(rows), _DEV_BATCH):
        part = by_length[start : start + _DEV_BATCH]
        batch = {name: tensor.to(device) for name, tensor in collate([part]).items()}
        total += float(model(**batch).loss) * sum(map(len, part))
    return total / tokens, tokens
