"""CPU time of Whisper's encoder on the same clips, reading its 30 s and at clip length.

    python bench/encoder_window.py --manifest ./processed/test_manifest.json --speech_encoder ./models/whisper-base

Promises: one thread, one clip at a time, the log-mel features made before; a first clip that does not count. Seconds
are of the processor, so that other work on the machine counts little. It says nothing of accuracy.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import BatchFeature

from asr_doge.audio import SAMPLE_RATE
from asr_doge.audio.reading import read_audio
from asr_doge.choices import EncoderWindow
from asr_doge.data.manifest import read_manifest
from asr_doge.models.ctc_head_checkpoints import find_speech_encoder
from asr_doge.models.encoders import SpeechEncoder, encoder_family
from asr_doge.models.encoders.loading import load_encoder

WINDOWS: tuple[EncoderWindow, ...] = ("full", "clip")


def cpu_seconds(encoder: SpeechEncoder, clips: Sequence[BatchFeature]) -> float:
    """Seconds of the processor for all clips, one by one."""
    with torch.no_grad():
        for number, clip in enumerate([clips[0], *clips]):
            if number == 1:
                began = time.process_time()
            encoder(clip["input_features"], clip["attention_mask"].sum(dim=1))
    return time.process_time() - began


def main() -> None:
    """Print a line for each window."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--speech_encoder", required=True)
    parser.add_argument("--clips", type=int, default=12, help="the first so many of the manifest")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    waveforms = [read_audio(utterance.audio_path) for utterance in read_manifest(arguments.manifest)[: arguments.clips]]
    seconds = sum(map(len, waveforms)) / SAMPLE_RATE
    for window in WINDOWS:
        found = find_speech_encoder(arguments.speech_encoder, window)
        encoder = load_encoder(found.reference, found.config)
        extractor = encoder_family(found.config).feature_extractor(found.config)
        options = {"sampling_rate": SAMPLE_RATE, "return_tensors": "pt", "return_attention_mask": True}
        spent = cpu_seconds(encoder, [extractor([waveform], **options) for waveform in waveforms])
        print(
            f"{window}: {len(waveforms)} clips of {seconds:.1f} s in all, {spent:.2f} s of CPU,"
            f" {spent / len(waveforms):.3f} s a clip, RTF {spent / seconds:.3f}"
        )


if __name__ == "__main__":
    main()
