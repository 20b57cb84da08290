"""Convert waveforms to padded batches of log-mel features, as a transformers feature extractor.

Promises: a clip's features do not depend on the others in its batch; `AutoFeatureExtractor` loads the extractor from a
checkpoint it was saved with.
It does not read files or resample (see `asr_doge.audio`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, SequenceFeatureExtractor

from asr_doge.audio.log_mel import FEATURE_SIZE, delta_log_mel_features, log_mel_features

Waveform = NDArray[np.floating[Any]] | Tensor


class LogMelFeatureExtractor(SequenceFeatureExtractor):
    """Granite Speech's log-mel features (`asr_doge.audio.log_mel`).

    Args:
        deltas: those of Granite Speech 5, of twice the size.
    """

    model_input_names = ["input_features", "attention_mask"]

    def __init__(
        self,
        feature_size: int = FEATURE_SIZE,
        sampling_rate: int = 16_000,
        padding_value: float = 0.0,
        deltas: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature_size, sampling_rate, padding_value, **kwargs)
        self.deltas = deltas

    def __call__(
        self, raw_speech: Waveform | Sequence[Waveform], sampling_rate: int | None = None, **_: Any
    ) -> BatchFeature:
        """Features of one waveform or a list of them.

        Args:
            raw_speech: `[samples]` each, mono, at 16 kHz.
            sampling_rate: of the waveforms in Hz, checked.
            _: options of other extractors that transformers' pipeline passes (`return_tensors`, …).

        Returns:
            `input_features` `[B, T, 160]` (with deltas 320) and `attention_mask` `[B, T]`, 1 at real frames.

        Raises:
            ValueError: another sampling rate, or a clip of less than 257 samples.
        """
        if sampling_rate not in (None, self.sampling_rate):
            raise ValueError(f"expected waveforms at {self.sampling_rate} Hz, got {sampling_rate} Hz")
        waveforms = [torch.as_tensor(waveform) for waveform in _as_list(raw_speech)]
        compute = delta_log_mel_features if self.deltas else log_mel_features
        features = [compute(waveform.float()) for waveform in waveforms]
        lengths = torch.tensor([len(frames) for frames in features])
        padded = pad_sequence(features, batch_first=True, padding_value=self.padding_value)
        mask = (torch.arange(padded.shape[1])[None, :] < lengths[:, None]).long()
        return BatchFeature({"input_features": padded, "attention_mask": mask})


def _as_list(raw_speech: Waveform | Sequence[Waveform]) -> list[Waveform]:
    if isinstance(raw_speech, np.ndarray | Tensor) and raw_speech.ndim == 1:
        return [raw_speech]
    return list(raw_speech)
