"""Convert waveforms to padded batches of an encoder's input, as transformers feature extractors.

Promises: a clip's features do not depend on the others in its batch; `AutoFeatureExtractor` loads an extractor from a
checkpoint it was saved with.
They do not read files or resample (see `asr_doge.audio`).
"""

from abc import abstractmethod
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

_SMALLEST_VARIANCE = 1e-7  # of transformers' `Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm`


class ClipFeatureExtractor(SequenceFeatureExtractor):
    """Features of each clip by itself, padded to a batch."""

    model_input_names = ["input_features", "attention_mask"]

    @abstractmethod
    def clip_features(self, waveform: Tensor) -> Tensor:
        """Features `[T, ...]` of a float waveform `[samples]`."""

    def __call__(
        self, raw_speech: Waveform | Sequence[Waveform], sampling_rate: int | None = None, **_: Any
    ) -> BatchFeature:
        """Features of one waveform or a list of them.

        Args:
            raw_speech: `[samples]` each, mono.
            sampling_rate: of the waveforms in Hz, checked.
            _: options of other extractors that transformers' pipeline passes (`return_tensors`, …).

        Returns:
            `input_features` `[B, T, ...]` and `attention_mask` `[B, T]`, 1 at real frames.

        Raises:
            ValueError: another sampling rate, or a clip that is too short for one frame.
        """
        if sampling_rate not in (None, self.sampling_rate):
            raise ValueError(f"expected waveforms at {self.sampling_rate} Hz, got {sampling_rate} Hz")
        is_one = isinstance(raw_speech, np.ndarray | Tensor) and raw_speech.ndim == 1
        features = [
            self.clip_features(torch.as_tensor(clip).float()) for clip in ([raw_speech] if is_one else raw_speech)
        ]
        padded = pad_sequence(features, batch_first=True, padding_value=self.padding_value)
        lengths = torch.tensor([len(frames) for frames in features])
        mask = (torch.arange(padded.shape[1])[None, :] < lengths[:, None]).long()
        return BatchFeature({"input_features": padded, "attention_mask": mask})


class LogMelFeatureExtractor(ClipFeatureExtractor):
    """Granite Speech's features (`asr_doge.audio.log_mel`), `[T, 160]`; with `deltas` version 5's, `[T, 320]`."""

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

    def clip_features(self, waveform: Tensor) -> Tensor:
        """`[T, 160]` or `[T, 320]`; of at least 257 samples."""
        return delta_log_mel_features(waveform) if self.deltas else log_mel_features(waveform)


class WaveformFeatureExtractor(ClipFeatureExtractor):
    """Samples, one a frame, for encoders that read waveforms.

    Args:
        do_normalize: bring each clip to mean 0 and variance 1, as `Wav2Vec2FeatureExtractor` does.
    """

    def __init__(
        self,
        feature_size: int = 1,
        sampling_rate: int = 16_000,
        padding_value: float = 0.0,
        do_normalize: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature_size, sampling_rate, padding_value, **kwargs)
        self.do_normalize = do_normalize

    def clip_features(self, waveform: Tensor) -> Tensor:
        """The samples `[samples]`, normalized if so configured."""
        if not self.do_normalize:
            return waveform
        return (waveform - waveform.mean()) / (waveform.var(unbiased=False) + _SMALLEST_VARIANCE).sqrt()
