"""Training examples from utterances, by audio or by the feature cache, and batches of them.

Promises: both sources give batches that the model reads the same way, so training on cached and on computed features
is the same; the augmentation of an example depends only on the seed, the epoch and the utterance's id, so a resumed run
and any number of worker processes give the same, whatever else is in the manifest. They do not know the Trainer.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from asr_doge.audio.augmentation import Augmentation, mask_features
from asr_doge.audio.log_mel import FEATURE_SIZE, FRAME_STACK
from asr_doge.audio.reading import read_clip
from asr_doge.data.feature_cache import FeatureCache
from asr_doge.data.manifest import Utterance, id_digest
from asr_doge.models.layout import IGNORED_LABEL
from asr_doge.models.processing_asr_doge import ASRDogeProcessor

Example = dict[str, Tensor]
NO_LABELS = torch.tensor([IGNORED_LABEL])


class EpochDataset(Dataset[Example]):
    """Examples of utterances, whose augmentation depends on the seed and the epoch."""

    def __init__(self, utterances: Sequence[Utterance], seed: int) -> None:
        self.utterances = utterances
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose augmentation comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.utterances)

    def rng(self, utterance: Utterance) -> np.random.Generator:
        """The random generator for the augmentation of an utterance in this epoch."""
        return np.random.default_rng([self.seed, self.epoch, *id_digest(utterance.id)])


class UtteranceDataset(EpochDataset):
    """Base of the two sources; adds `prompt_ids` `[P]` if the prompt names the language.

    Args:
        utterances, seed: as in `EpochDataset`.
        processor: makes input features and labels.

    Attributes:
        reads_at_once: examples of a batch that are read at the same time.
        ctc_ids: gives the `ctc_labels` `[L']` of a text, if a CTC head is trained too.
    """

    reads_at_once = 1

    def __init__(self, utterances: Sequence[Utterance], processor: ASRDogeProcessor, seed: int = 0) -> None:
        super().__init__(utterances, seed)
        self.processor = processor
        self.ctc_ids: Callable[[str], Sequence[int]] | None = None

    def _text(self, text: str | None, language: str | None) -> Example:
        """Labels of a text, and its prompt if prompts differ; for None, labels that give no loss."""
        labels = {"labels": NO_LABELS if text is None else self.processor.text_ids(text)}
        if self.ctc_ids is not None:
            ids = [] if text is None else self.ctc_ids(text)
            labels["ctc_labels"] = torch.tensor(ids, dtype=torch.long)
        if self.processor.names_language:
            labels["prompt_ids"] = self.processor.prompt_ids(language)
        return labels

    def blank(self) -> Example:
        """A placeholder without labels for an empty place in a batch: it gives no loss."""
        raise NotImplementedError


class SpeechDataset(UtteranceDataset):
    """Examples of `input_features` `[T, F]` and `labels` `[L]`, computed from the audio when they are needed.

    A recording that cannot be read, or not whole, is an AudioError; the feature cache leaves out the same recordings.

    Args:
        utterances, processor, seed: as in `UtteranceDataset`.
        augment: vary the recordings (`Augmentation`) and mask their features (SpecAugment).
    """

    def __init__(
        self, utterances: Sequence[Utterance], processor: ASRDogeProcessor, augment: bool = False, seed: int = 0
    ) -> None:
        super().__init__(utterances, processor, seed)
        self.augmentation = Augmentation() if augment else None

    def __getitem__(self, index: int) -> Example:
        utterance = self.utterances[index]
        extractor, rng = self.processor.feature_extractor, self.rng(utterance)
        longest = getattr(extractor, "n_samples", None)  # Whisper's would cut longer clips silently
        waveform = read_clip(utterance.audio_path, extractor.sampling_rate, longest)
        if self.augmentation is not None:
            waveform = self.augmentation(waveform, extractor.sampling_rate, rng, longest)
        features, mask = self._features(waveform)
        if self.augmentation is not None:
            frames = features if len(features) == len(mask) else features.T  # Whisper's are [mels, T]
            mask_features(frames[: int(mask.sum())], rng, FRAME_STACK if frames.shape[1] == FEATURE_SIZE else 1)
        return {
            "input_features": features,
            "attention_mask": mask,
            **self._text(utterance.text, utterance.language),
        }

    def blank(self) -> Example:
        """See `UtteranceDataset.blank`: a second of silence."""
        features, mask = self._features(np.zeros(self.processor.feature_extractor.sampling_rate, dtype=np.float32))
        return {"input_features": features, "attention_mask": mask, **self._text(None, None)}

    def _features(self, waveform: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
        """The encoder's input features of a clip, and their mask."""
        batch = self.processor(audio=waveform, sampling_rate=self.processor.feature_extractor.sampling_rate)
        return batch["input_features"][0], batch["attention_mask"][0]


class CachedSpeechDataset(UtteranceDataset):
    """Examples of `speech_embeddings` `[T', D]` and `labels` `[L]`, the former read from the feature cache.

    Args:
        utterances, processor, seed: as in `UtteranceDataset`.
        cache: holds all the utterances.
        use_copies: draw one of the augmented copies, or the original, each epoch.
        frame_dropping: share of the embeddings to leave out at random.
        embedding_noise: level of white noise to add, relative to the embeddings' own (RMS).
        reads_at_once: more than 1 where each read takes its time, as from the cloud.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        processor: ASRDogeProcessor,
        cache: FeatureCache,
        seed: int = 0,
        *,
        use_copies: bool = False,
        frame_dropping: float = 0.0,
        embedding_noise: float = 0.0,
        reads_at_once: int = 1,
    ) -> None:
        super().__init__(utterances, processor, seed)
        self.cache = cache
        self.use_copies = use_copies
        self.frame_dropping = frame_dropping
        self.embedding_noise = embedding_noise
        self.reads_at_once = reads_at_once

    def __getitem__(self, index: int) -> Example:
        utterance = self.utterances[index]
        rng = self.rng(utterance)
        copy = int(rng.integers(self.cache.num_copies(utterance.id))) if self.use_copies else 0
        embeddings = self._varied(self.cache.embeddings(utterance.id, copy), rng)
        return {
            "speech_embeddings": embeddings,
            "attention_mask": torch.ones(len(embeddings), dtype=torch.long),
            **self._text(utterance.text, utterance.language),
        }

    def blank(self) -> Example:
        """See `UtteranceDataset.blank`: a single embedding, all zeros."""
        embeddings = torch.zeros_like(self.cache[self.utterances[0].id][:1])
        return {
            "speech_embeddings": embeddings,
            "attention_mask": torch.ones(1, dtype=torch.long),
            **self._text(None, None),
        }

    def _varied(self, embeddings: Tensor, rng: np.random.Generator) -> Tensor:
        """`[T', D]` to `[at most T', D]`, with at least one row."""
        if self.frame_dropping:
            kept = torch.from_numpy(rng.random(len(embeddings)) >= self.frame_dropping)
            embeddings = embeddings[kept] if kept.any() else embeddings[:1]
        if self.embedding_noise:
            level = self.embedding_noise * embeddings.float().square().mean().sqrt()
            noise = torch.from_numpy(rng.standard_normal(embeddings.shape, dtype=np.float32))
            embeddings = embeddings.float() + level * noise
        return embeddings


def collate_examples(examples: Sequence[Example]) -> dict[str, Any]:
    """Pad a list of examples to a batch for `ASRDogeForConditionalGeneration.forward`."""
    padding = dict.fromkeys(("labels", "prompt_ids", "ctc_labels"), IGNORED_LABEL)
    return {
        name: pad_sequence([example[name] for example in examples], True, padding.get(name, 0)) for name in examples[0]
    }
