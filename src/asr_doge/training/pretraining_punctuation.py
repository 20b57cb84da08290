"""A small model that restores case and punctuation, from nothing, on text alone: the recipe behind `--text written`.

Promises: an example is a stretch of the text in its order, whole sentences or cut anywhere, since a recording may begin
and end anywhere. Same seed and machine, same weights; an interrupted run continues at its last checkpoint. Sentences of
the manifests it is told to leave out are not read.
It does not know audio.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import ModernBertForTokenClassification, PreTrainedTokenizerBase, Trainer, set_seed

from asr_doge.data.text_files import read_lines
from asr_doge.errors import DataError
from asr_doge.models.checkpoints import find_model
from asr_doge.models.layout import IGNORED_LABEL
from asr_doge.models.punctuation import (
    FOLDER,
    WINDOW_WORDS,
    Punctuator,
    load_punctuator,
    punctuation_config,
    word_batch,
    word_tokens,
)
from asr_doge.text.punctuation import LABELS, labelled_words
from asr_doge.training.arguments import pretraining_arguments, train_or_resume
from asr_doge.training.pretraining_configuration import PretrainPunctuationConfig
from asr_doge.training.pretraining_language_model import DEV_EVERY, plain_transcripts, text_recipe
from asr_doge.training.pretraining_text import build_text_tokenizer
from asr_doge.training.recipes import refuse_another_recipe, store_recipe

_WHOLE_SENTENCES = 0.75
"""Share of examples that begin and end with sentences."""
_MOST_SENTENCES = 3
"""Most sentences of such an example."""
_DEV_SENTENCES = 4
"""Sentences that are read together for the results, in the order of the text."""

Sentence = list[tuple[str, int]]
"""The words of a sentence, each with the id of its label."""


def read_sentences(config: PretrainPunctuationConfig) -> list[Sentence]:
    """The sentences of the files, in order, each once, without those of `without_manifests`.

    Raises:
        DataError: a file cannot be read, or no sentence with case and punctuation is left.
    """
    seen = plain_transcripts(config.without_manifests)
    sentences: list[Sentence] = []
    for name in config.text_files:
        for line in read_lines(Path(name)):
            words = labelled_words(line)
            plain = " ".join(word for word, _ in words)
            if words and plain not in seen:
                seen.add(plain)
                sentences.append(words)
    if not any(label for sentence in sentences for _, label in sentence):
        raise DataError("--text_files hold no sentence with case or punctuation: give files with a sentence a line")
    return sentences


@dataclass(frozen=True)
class _Example:
    """A stretch of text: tokens of each word, and the word's label."""

    tokens: list[list[int]]
    labels: list[int]


class TextStretches(Dataset[_Example]):
    """`size` stretches of a text, each drawn from the seed and its number; `sentences` are in the order of the text."""

    def __init__(self, sentences: Sequence[Sentence], tokenizer: PreTrainedTokenizerBase, size: int, seed: int) -> None:
        self._words = [pair for sentence in sentences for pair in sentence]
        self._starts = np.cumsum([0, *map(len, sentences)])
        self._tokenizer, self._size, self._seed = tokenizer, size, seed

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> _Example:
        rng = np.random.default_rng([self._seed, index])
        if rng.random() < _WHOLE_SENTENCES:
            first = int(rng.integers(len(self._starts) - 1))
            last = min(first + int(rng.integers(1, _MOST_SENTENCES + 1)), len(self._starts) - 1)
            start, stop = int(self._starts[first]), int(self._starts[last])
        else:
            start = int(rng.integers(max(len(self._words) - WINDOW_WORDS, 1)))
            stop = start + WINDOW_WORDS
        words, labels = zip(*self._words[start : min(stop, start + WINDOW_WORDS)], strict=True)
        return _Example(word_tokens(self._tokenizer, words), list(labels))


def _collate(examples: Sequence[_Example]) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask` and `labels`, each `[B, N]`; a word's label is at its last token."""
    batch, ends = word_batch([example.tokens for example in examples])
    rows = []
    for example, places in zip(examples, ends, strict=True):
        row = torch.full((int(places[-1]) + 1,), IGNORED_LABEL)
        row[places] = torch.tensor(example.labels)
        rows.append(row)
    return batch | {"labels": pad_sequence(rows, batch_first=True, padding_value=IGNORED_LABEL)}


def pretrain_punctuation(config: PretrainPunctuationConfig) -> dict[str, float]:
    """Make the model and write it to `punctuation/` in the output folder, in half precision.

    Returns:
        `parameters`; of sentences kept out, `mark_precision` and `mark_recall` (a mark counts if it is the one of the
        text), and `case_accuracy` of words.

    Raises:
        DataError: a file cannot be read, or holds no case and punctuation.
        ConfigError: the output folder has a run of another recipe.
    """
    folder = Path(config.output_dir) / "stages" / FOLDER
    recipe = text_recipe(config)
    refuse_another_recipe(folder, recipe)
    set_seed(config.seed)
    sentences = read_sentences(config)
    # Stretches of the text, since a sentence begins and ends where its neighbours tell.
    is_dev = [place // _DEV_SENTENCES % DEV_EVERY == 0 for place in range(len(sentences))]
    train = [sentence for sentence, held in zip(sentences, is_dev, strict=True) if not held] or sentences
    dev = [sentence for sentence, held in zip(sentences, is_dev, strict=True) if held]
    plain = [" ".join(word for word, _ in sentence) for sentence in train]
    tokenizer = build_text_tokenizer(plain, config.text_vocab_size)
    model = ModernBertForTokenClassification(punctuation_config(tokenizer, config.text_hidden_dim, config.text_layers))
    store_recipe(folder, recipe)
    arguments = pretraining_arguments(folder, config.steps, config.batch_size, config.learning_rate, config.seed)
    stretches = TextStretches(train, tokenizer, config.steps * config.batch_size, config.seed)
    trainer = Trainer(model, arguments, data_collator=_collate, train_dataset=stretches)
    train_or_resume(trainer)
    written = Path(config.output_dir) / FOLDER
    model.half().save_pretrained(written)
    tokenizer.save_pretrained(written)
    punctuator = load_punctuator(find_model(Path(config.output_dir).resolve()))
    results: dict[str, Any] = {"parameters": model.num_parameters(), **evaluate(punctuator, dev, _DEV_SENTENCES)}
    (written / "pretraining.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


def evaluate(punctuator: Punctuator, sentences: Sequence[Sentence], together: int) -> dict[str, float]:
    """Precision and recall of marks, and the share of words with the right case; `together` sentences are one text."""
    right = found = wanted = same_case = words = 0
    for start in range(0, len(sentences), together):
        pairs = [pair for sentence in sentences[start : start + together] for pair in sentence]
        labels = punctuator.labels([word for word, _ in pairs])
        for (_, truth), label in zip(pairs, labels, strict=True):
            expected, given = LABELS[truth], LABELS[label]
            right += bool(given.mark) and given.mark == expected.mark
            found += bool(given.mark)
            wanted += bool(expected.mark)
            same_case += given.case == expected.case
            words += 1
    return {
        "mark_precision": right / max(found, 1),
        "mark_recall": right / max(wanted, 1),
        "case_accuracy": same_case / max(words, 1),
    }
