"""Waveforms as they are, to padded batches, for encoders that hear samples; a transformers feature extractor.

Promises: a clip's samples do not depend on the others in its batch; saved with a checkpoint, the extractor is found
again by `AutoFeatureExtractor`.
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

Waveform = NDArray[np.floating[Any]] | Tensor

_SMALLEST_VARIANCE = 1e-7  # of transformers' `Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm`


class WaveformFeatureExtractor(SequenceFeatureExtractor):
    """Samples, one a frame.

    Args:
        sampling_rate: Hz of the waveforms.
        do_normalize: bring each clip to mean 0 and variance 1, as `Wav2Vec2FeatureExtractor` does.
    """

    model_input_names = ["input_features", "attention_mask"]

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

    def __call__(
        self, raw_speech: Waveform | Sequence[Waveform], sampling_rate: int | None = None, **_: Any
    ) -> BatchFeature:
        """A batch of one waveform or a list of them.

        Args:
            raw_speech: `[samples]` each, mono.
            sampling_rate: Hz of the waveforms, to be checked.
            _: options of other extractors that transformers' pipeline passes (`return_tensors`, …).

        Returns:
            `input_features` `[B, samples]` and `attention_mask` `[B, samples]`, 1 at real samples.

        Raises:
            ValueError: another sampling rate.
        """
        if sampling_rate not in (None, self.sampling_rate):
            raise ValueError(f"expected waveforms at {self.sampling_rate} Hz, got {sampling_rate} Hz")
        is_one = isinstance(raw_speech, np.ndarray | Tensor) and raw_speech.ndim == 1
        clips = [torch.as_tensor(clip).float() for clip in ([raw_speech] if is_one else raw_speech)]
        if self.do_normalize:
            clips = [(clip - clip.mean()) / (clip.var(unbiased=False) + _SMALLEST_VARIANCE).sqrt() for clip in clips]
        padded = pad_sequence(clips, batch_first=True, padding_value=self.padding_value)
        lengths = torch.tensor([len(clip) for clip in clips])
        mask = (torch.arange(padded.shape[1])[None, :] < lengths[:, None]).long()
        return BatchFeature({"input_features": padded, "attention_mask": mask})
