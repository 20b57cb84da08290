"""Compute Granite Speech's log-mel features without torchaudio.

Promises: `log_mel_features` gives the features of the published recipe for a single clip: 80 HTK mel bands of a power
spectrogram (FFT 512, Hann window 400, hop 160 samples at 16 kHz), log10 floored at eight decades below the clip's
maximum, scaled to about [-1, 1], an odd last frame dropped, two frames stacked into one of 160 values at 50 Hz.
`delta_log_mel_features` gives Granite Speech 5's, which add differences in time to the bands.
Source: `GraniteSpeechFeatureExtractor` and `GraniteSpeech5FeatureExtractor` in transformers.

It does not know batches: the floor depends on a clip's own maximum, so clips are computed one at a time and padded
afterwards. Upstream pads the waveforms first, so a neighbour's length can change a clip's last frames.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

FFT_LENGTH = 512
WINDOW_LENGTH = 400
HOP_LENGTH = 160
MEL_BANDS = 80
FRAME_STACK = 2
FEATURE_SIZE = MEL_BANDS * FRAME_STACK
DELTA_FEATURE_SIZE = 2 * FEATURE_SIZE
FRAME_RATE_HZ = 50
MINIMUM_SAMPLES = FFT_LENGTH // 2 + 1
"""The STFT reflects half a window at each end, which needs more samples than half a window."""


def log_mel_features(waveform: Tensor) -> Tensor:
    """Stacked log-mel frames of one clip.

    Args:
        waveform: `[samples]`, mono, 16 kHz, at least `MINIMUM_SAMPLES` (16 ms) long. Any float dtype; float64 is
            computed in float64.

    Returns:
        `[T, 160]` with `T = (samples // 160 + 1) // 2`, at 50 frames per second.

    Raises:
        ValueError: the clip is shorter than `MINIMUM_SAMPLES`.
    """
    log_mel = _log_scaled(_mel_power(waveform))
    frames = log_mel.shape[0] - log_mel.shape[0] % FRAME_STACK
    return log_mel[:frames].reshape(-1, FEATURE_SIZE)


def delta_log_mel_features(waveform: Tensor) -> Tensor:
    """Stacked frames of Granite Speech 5: log-mel, and beside it half the difference of the frames around.

    Args:
        waveform: as for `log_mel_features`.

    Returns:
        `[T, 320]` with `T` half of the whole hops of the clip, rounded up; at 50 frames per second.

    Raises:
        ValueError: as in `log_mel_features`.
    """
    hops = waveform.shape[-1] // HOP_LENGTH
    frames = hops + hops % FRAME_STACK
    missing = (frames - 1) * HOP_LENGTH + 1 - waveform.shape[-1]
    log_mel = _log_scaled(_mel_power(F.pad(waveform, (0, max(0, missing))))[:frames])
    around = torch.cat([log_mel[:1], log_mel, log_mel[-1:]])
    return torch.cat([log_mel, (around[2:] - around[:-2]) / 2], dim=1).reshape(-1, DELTA_FEATURE_SIZE)


def _mel_power(waveform: Tensor) -> Tensor:
    """Mel bands `[frames, 80]` of the power spectrogram of a clip."""
    if waveform.shape[-1] < MINIMUM_SAMPLES:
        raise ValueError(f"a log-mel frame needs at least {MINIMUM_SAMPLES} samples, got {waveform.shape[-1]}")
    window = torch.hann_window(WINDOW_LENGTH, dtype=waveform.dtype, device=waveform.device)
    spectrum = torch.stft(
        waveform, FFT_LENGTH, HOP_LENGTH, WINDOW_LENGTH, window, center=True, pad_mode="reflect", return_complex=True
    )
    power = spectrum.real.square() + spectrum.imag.square()  # [257, frames]
    return power.transpose(0, 1) @ mel_filters().to(waveform.dtype).to(waveform.device)


def _log_scaled(mel: Tensor) -> Tensor:
    """Eight decades of a clip's mel power, to about [-1, 1]."""
    log_mel = mel.clamp(min=1e-10).log10()
    return torch.maximum(log_mel, log_mel.max() - 8.0) / 4.0 + 1.0


@lru_cache(maxsize=1)
def mel_filters() -> Tensor:
    """Triangular HTK mel filters without area normalisation, `[257, 80]`, float64."""
    # Imported here: transformers takes a second to import, and reading audio does not need it.
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(
        num_frequency_bins=FFT_LENGTH // 2 + 1,
        num_mel_filters=MEL_BANDS,
        min_frequency=0.0,
        max_frequency=8_000.0,
        sampling_rate=16_000,
        norm=None,
        mel_scale="htk",
    )
    return torch.from_numpy(filters)
