"""Text for training a language model from nothing to transcribe.

Promises: an example has the layout of `ASRDogeForConditionalGeneration`, `[bos] prompt | speech | text [eos]`, but its
speech consists of the text's own token embeddings, stretched, with noise and silence between them. The language model
learns where to look next, and can use this for real speech once an adapter maps it to token embeddings; from real
speech alone it had not learned this after five times the steps.
It does not know audio.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from asr_doge.data.digits import DIGIT_WORDS, random_digits
from asr_doge.defaults import DEFAULT_PROMPT
from asr_doge.models import ASRDogeProcessor
from asr_doge.models.layout import IGNORED_LABEL

TEXT, TOKEN, SILENCE = 0, 1, 2
"""Kind of a position: plain text, a token in the speech part, or silence."""
NOISE = (0.2, 1.0)
"""Range of the noise on the speech part, relative to the scale of the token embeddings."""


def build_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in which every digit word is one token."""
    texts = [DEFAULT_PROMPT] + [f"{first} {second}" for first in DIGIT_WORDS for second in DIGIT_WORDS]
    return build_text_tokenizer(texts, vocab_size)


def build_text_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `texts`; it can write any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


class StretchedTokens(Dataset[dict[str, Tensor]]):
    """Digit strings in the form of speech: example `i` depends only on the seed and `i`."""

    def __init__(self, size: int, processor: ASRDogeProcessor, prompt_ids: Sequence[int], seed: int) -> None:
        self.size = size
        self.processor = processor
        self.prompt_ids = list(prompt_ids)
        self.seed = seed

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, index, 2])
        text = self.processor.text_ids(" ".join(random_digits(rng, (1, 8)))).tolist()
        speech = [(0, SILENCE)] * int(rng.integers(1, 5))
        for token, following in pairwise(text):
            # Without silence in between, a repeated token could not be distinguished from a stretched one.
            shortest = 1 if token == following else 0
            speech += [(token, TOKEN)] * int(rng.integers(1, 6)) + [(0, SILENCE)] * int(rng.integers(shortest, 5))
        before = [(token, TEXT) for token in self.prompt_ids] + speech
        positions = before + [(token, TEXT) for token in text]
        return {
            "input_ids": torch.tensor([token for token, _ in positions]),
            "kinds": torch.tensor([kind for _, kind in positions]),
            "labels": torch.tensor([IGNORED_LABEL] * len(before) + text),
        }


def collate_stretched_tokens(examples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """`input_ids`, `kinds`, `labels` and `attention_mask`, each `[B, N]`, padded on the right."""
    padding = {"input_ids": 0, "kinds": TEXT, "labels": IGNORED_LABEL}
    batch = {
        name: pad_sequence([example[name] for example in examples], batch_first=True, padding_value=value)
        for name, value in padding.items()
    }
    real = [torch.ones_like(example["input_ids"]) for example in examples]
    return batch | {"attention_mask": pad_sequence(real, batch_first=True)}


class TiedStage(nn.Module):
    """A stage with a language model, whose output layer is its token embedding."""

    _keys_to_ignore_on_save = None  # the Trainer asks for it when it resumes, as tied weights are saved but once

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override] # torch's overloads
        """Omit the output layer: safetensors refuses to store a tensor twice."""
        weights = super().state_dict(*args, **options)
        return {name: tensor for name, tensor in weights.items() if not name.endswith("lm_head.weight")}


class StretchedTokenStage(TiedStage):
    """The language model alone, reading stretched text."""

    def __init__(self, language_model: PreTrainedModel) -> None:
        super().__init__()
        self.language_model = language_model

    def forward(self, input_ids: Tensor, kinds: Tensor, labels: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of the text in a `collate_stretched_tokens` batch."""
        embeddings = self.language_model.get_input_embeddings()(input_ids)
        scale = embeddings.detach().square().mean().sqrt()
        level = torch.empty(len(input_ids), 1, 1).uniform_(*NOISE).to(embeddings.device)
        noise = torch.randn_like(embeddings) * scale * level
        embeddings = embeddings.masked_fill((kinds == SILENCE)[..., None], 0.0)
        embeddings = embeddings + noise.masked_fill((kinds == TEXT)[..., None], 0.0)
        output = self.language_model(inputs_embeds=embeddings, attention_mask=attention_mask, labels=labels)
        return {"loss": output.loss}
