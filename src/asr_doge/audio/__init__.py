"""Recordings and waveforms: reading, resampling, augmentation and synthesis.

Promises: every waveform is mono float32 `[samples]`, full scale at 1, at `SAMPLE_RATE` unless a rate is named; and
importing this package loads no audio library. It knows nothing of text, models or corpora.
"""

from asr_doge.audio.arrays import prepare_waveform
from asr_doge.audio.augmentation import (
    Augmentation,
    add_noise,
    change_speed,
    reverberate,
    scale_level,
    telephone_band,
)
from asr_doge.audio.folders import AUDIO_EXTENSIONS, find_audio_files
from asr_doge.audio.reading import audio_duration, read_audio, read_blocks, read_clip
from asr_doge.audio.resampling import SAMPLE_RATE, resample
from asr_doge.audio.synthesis import Voice, synthesize, voice_names

__all__ = [
    "AUDIO_EXTENSIONS",
    "SAMPLE_RATE",
    "Augmentation",
    "Voice",
    "add_noise",
    "audio_duration",
    "change_speed",
    "find_audio_files",
    "prepare_waveform",
    "read_audio",
    "read_blocks",
    "read_clip",
    "resample",
    "reverberate",
    "scale_level",
    "synthesize",
    "telephone_band",
    "voice_names",
]
