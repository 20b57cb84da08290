"""Utterances as training examples, from the audio itself or from the feature cache, and batches of them.

Promises: both sources give batches that the model reads the same way, so a cached feature trains like a computed one.
They do not know the Trainer.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from asr_doge.audio.reading import read_audio
from asr_doge.data.feature_cache import FeatureCache
from asr_doge.data.manifest import Utterance
from asr_doge.errors import AudioError
from asr_doge.models.modeling_asr_doge import IGNORED_LABEL
from asr_doge.models.processing_asr_doge import ASRDogeProcessor

Example = dict[str, Tensor]


class SpeechDataset(Dataset[Example]):
    """Examples of `input_features` `[T, F]` and `labels` `[L]`, computed from the audio when asked for.

    A recording that cannot be read, or not whole, is an AudioError.
    """

    def __init__(self, utterances: Sequence[Utterance], processor: ASRDogeProcessor) -> None:
        self.utterances = utterances
        self.processor = processor

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> Example:
        utterance = self.utterances[index]
        sampling_rate = self.processor.feature_extractor.sampling_rate
        waveform = read_audio(utterance.audio_path, sampling_rate)
        try:
            batch = self.processor(audio=waveform, sampling_rate=sampling_rate)
        except ValueError as error:  # too short for one frame, or longer than the encoder reads
            raise AudioError(f"{utterance.audio_path}: {error}; leave it out of the manifest") from error
        return {
            "input_features": batch["input_features"][0],
            "attention_mask": batch["attention_mask"][0],
            "labels": self.processor.label_ids(utterance.text),
        }


class CachedSpeechDataset(Dataset[Example]):
    """Examples of `speech_embeddings` `[T', D]` and `labels` `[L]`, the former read from the feature cache."""

    def __init__(self, utterances: Sequence[Utterance], processor: ASRDogeProcessor, cache: FeatureCache) -> None:
        self.utterances = utterances
        self.processor = processor
        self.cache = cache

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> Example:
        utterance = self.utterances[index]
        embeddings = self.cache[utterance.id]
        return {
            "speech_embeddings": embeddings,
            "attention_mask": torch.ones(len(embeddings), dtype=torch.long),
            "labels": self.processor.label_ids(utterance.text),
        }


def collate_examples(examples: Sequence[Example]) -> dict[str, Any]:
    """Pad a list of examples to a batch for `ASRDogeForConditionalGeneration.forward`."""
    padding = {"labels": IGNORED_LABEL}
    return {
        name: pad_sequence([example[name] for example in examples], True, padding.get(name, 0)) for name in examples[0]
    }
