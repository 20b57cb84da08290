"""Generate speech for training a small model from nothing.

Promises: clip `i` of a run depends only on the seed and `i`, in whatever process it is made; speakers and voices kept
out of training are not used.
It does not know what is trained on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from asr_doge.audio.augmentation import Augmentation, mask_features
from asr_doge.audio.log_mel import MEL_BANDS, log_mel_features
from asr_doge.audio.reading import read_audio
from asr_doge.audio.resampling import SAMPLE_RATE
from asr_doge.data.digits import (
    Recordings,
    random_digits,
    random_voice,
    split_voices,
    spoken_digits,
    synthesized_digits,
)


@dataclass(frozen=True)
class Difficulty:
    """A stretch of a run: the fraction at which it ends, the maximum number of digits, and the share of varied clips.

    `other_speakers` warps the spectra and tempo of the varied clips, for more kinds of voices than were recorded.
    """

    until: float
    longest: int
    varied_share: float
    other_speakers: bool = False


CURRICULUM = (Difficulty(0.12, 1, 0.0), Difficulty(0.3, 3, 0.5), Difficulty(1.0, 5, 0.9))
"""From easy to hard: CTC finds its first alignments within minutes in clear single digits, hardly in noisy strings."""
LAST_DIFFICULTY = Difficulty(1.0, 6, 0.9, other_speakers=True)
"""Continues with a model that has learned to spell."""
LONG_DIFFICULTY = Difficulty(1.0, 8, 0.7, other_speakers=True)
"""Last stage with longer strings, since otherwise the language model stops too early in them, or does not stop."""
SILENT_SHARE = 0.03
"""Share of clips without speech, so that the model learns to write nothing."""


class PretrainingSpeech(Dataset[dict[str, Any]]):
    """Endless varied speech: digit strings of human recordings and of espeak-ng voices, and sentences.

    The clips grow harder over the run (`CURRICULUM`). All clips of a batch are sentences, or all are strings of the
    same number of digits, which keeps padding low.

    Args:
        size: clips in the run.
        batch_size: clips of a batch.
        recordings: of single digits, by speaker.
        sentences: audio files and their texts; may be empty.
        sentence_share: share of batches that are sentences, if there are any, from the second lesson on.
        seed: of everything random.
        curriculum: how the clips grow harder.
        waveforms: give samples instead of log-mel features; SpecAugment is then not applied.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        recordings: Recordings,
        sentences: Sequence[tuple[Path, str]],
        sentence_share: float,
        seed: int,
        curriculum: Sequence[Difficulty] = CURRICULUM,
        waveforms: bool = False,
    ) -> None:
        self.size = size
        self.batch_size = batch_size
        self.recordings = recordings
        self.sentences = sentences
        self.sentence_share = sentence_share if sentences else 0.0
        self.seed = seed
        self.curriculum = curriculum
        self.waveforms = waveforms
        self.voices = split_voices().train
        self.augmentation = Augmentation(
            speed_probability=0.8,
            speed=(0.83, 1.2),
            reverberation_probability=0.1,
            noise_probability=0.35,
            snr_db=(8.0, 35.0),
            # The human digits are recorded at 8 kHz. Without this, bandwidth would distinguish few real speakers from
            # many synthetic ones, and what is learned from the many would not carry over.
            telephone_probability=0.6,
        )

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        batch_rng = np.random.default_rng([self.seed, index // self.batch_size])
        difficulty = next(difficulty for difficulty in self.curriculum if index < difficulty.until * self.size)
        num_digits = int(batch_rng.integers(1, difficulty.longest + 1))
        is_sentence = batch_rng.random() < self.sentence_share and difficulty.longest > 1
        rng = np.random.default_rng([self.seed, index, 1])
        waveform, text = self._sentence(rng) if is_sentence else self._digits(num_digits, rng)
        varied = rng.random() < difficulty.varied_share
        if varied:
            waveform = self.augmentation(waveform, SAMPLE_RATE, rng)
        if self.waveforms:
            return {"input_features": torch.from_numpy(waveform), "text": text}
        features = log_mel_features(torch.from_numpy(waveform))
        if varied and difficulty.other_speakers:
            features = bend_features(features, rng)
        return {"input_features": mask_features(features, rng) if varied else features, "text": text}

    def _sentence(self, rng: np.random.Generator) -> tuple[NDArray[np.float32], str]:
        path, text = self.sentences[int(rng.integers(len(self.sentences)))]
        return read_audio(path), text

    def _digits(self, num_digits: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], str]:
        if rng.random() < SILENT_SHARE:
            noise = rng.standard_normal(int(rng.uniform(0.5, 2.0) * SAMPLE_RATE), dtype=np.float32)
            return noise * np.float32(10 ** rng.uniform(-5, -1)), ""
        digits = random_digits(rng, (num_digits, num_digits))
        text = " ".join(digits)
        if rng.random() < 0.6:
            speaker = list(self.recordings)[rng.integers(len(self.recordings))]
            return spoken_digits(self.recordings[speaker], digits, rng), text
        return synthesized_digits(digits, random_voice(self.voices, rng), rng), text


def bend_features(features: Tensor, rng: np.random.Generator) -> Tensor:
    """Change the tempo, and the resonances as for a longer or shorter vocal tract.

    The latter is vocal tract length perturbation (Jaitly and Hinton, 2013), here on the mel bands. Unlike a change of
    speed, it does not change the pitch.

    Args:
        features: `[T, 160]`; every frame is two of 80 mel bands.
        rng: source of tempo (0.8 to 1.25) and stretch (0.92 to 1.08).

    Returns:
        `[other T, 160]`.
    """
    frames = features.view(1, 1, -1, MEL_BANDS)
    length = 2 * max(1, round(frames.shape[2] * rng.uniform(0.8, 1.25) / 2))
    frames = F.interpolate(frames, size=(length, MEL_BANDS), mode="bilinear", align_corners=False)[0, 0]
    source = (torch.arange(MEL_BANDS) * rng.uniform(0.92, 1.08)).clamp(max=MEL_BANDS - 1)
    below, above = source.floor().long(), source.ceil().long()
    bent = torch.lerp(frames[:, below], frames[:, above], (source - below).to(frames.dtype))
    return bent.reshape(-1, features.shape[1])


def collate_features(clips: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """`input_features` `[B, T, 160]` (or samples `[B, T]`) and `input_lengths` `[B]`."""
    features = [clip["input_features"] for clip in clips]
    return {
        "input_features": pad_sequence(features, batch_first=True),
        "input_lengths": torch.tensor([len(frames) for frames in features]),
    }
