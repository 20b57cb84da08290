"""Examples for CTC training on cached speech embeddings, and batches of them.

Promises: an utterance is read from the cache when it is needed, and its augmentation depends only on the seed, the
epoch and its id, so a resumed run gives the same. They know neither a network nor the Trainer.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from asr_doge.data.feature_cache import FeatureCache
from asr_doge.data.manifest import Utterance
from asr_doge.training.datasets import EpochDataset, Example

LONGEST_MASK = 10
"""Largest number of consecutive speech embeddings that are masked."""


class CTCExamples(EpochDataset):
    """`speech_embeddings` `[T', D]` and `ctc_labels` `[L]` of each utterance.

    Args:
        utterances: all are in the cache.
        cache: of speech embeddings.
        ids: gives the labels of a text.
        seed: of the augmentation.
        varied: draw one of the augmented copies or the original each epoch.
        masked: share of the embeddings to mask in short stretches (SpecAugment, https://arxiv.org/abs/1904.08779).
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        cache: FeatureCache,
        ids: Callable[[str], Sequence[int]],
        seed: int = 0,
        *,
        varied: bool = False,
        masked: float = 0.0,
    ) -> None:
        super().__init__(utterances, seed)
        self.cache = cache
        self.ids = ids
        self.varied = varied
        self.masked = masked

    def __getitem__(self, index: int) -> Example:
        utterance = self.utterances[index]
        rng = self.rng(utterance)
        copy = int(rng.integers(self.cache.num_copies(utterance.id))) if self.varied else 0
        embeddings = self.cache.embeddings(utterance.id, copy).float()
        if self.masked:
            embeddings = _masked(embeddings, self.masked, rng)
        return {
            "speech_embeddings": embeddings,
            "ctc_labels": torch.tensor(self.ids(utterance.text), dtype=torch.long),
        }


def _masked(embeddings: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """`[T', D]` with about this share masked."""
    kept = torch.ones(len(embeddings), 1)
    for _ in range(round(2 * share * len(embeddings) / LONGEST_MASK)):  # on average a mask has half the maximum length
        start, length = int(rng.integers(len(embeddings))), int(rng.integers(1, LONGEST_MASK + 1))
        kept[start : start + length] = 0.0
    return embeddings * kept


def collate_ctc_examples(examples: Sequence[Example]) -> dict[str, Tensor]:
    """A batch: `speech_embeddings` `[B, T', D]`, `ctc_labels` `[B, L]`, and the lengths `[B]` of both."""
    speech = [example["speech_embeddings"] for example in examples]
    labels = [example["ctc_labels"] for example in examples]
    return {
        "speech_embeddings": pad_sequence(speech, batch_first=True),
        "speech_lengths": torch.tensor([len(row) for row in speech]),
        "ctc_labels": pad_sequence(labels, batch_first=True),
        "ctc_label_lengths": torch.tensor([len(row) for row in labels]),
    }
