"""Recordings of noise, and what a model that writes nonsense makes of them."""

from pathlib import Path

from asr_doge.decoding import DecodingConfig
from asr_doge.inference.results import Transcription
from asr_doge.inference.transcription import Transcriber
from asr_doge.models import load_model
from tests import speech
from tests.models import tiny


def clip(path: Path, seconds: float = 0.8, seed: int = 0) -> Path:
    return speech.write_wav(path, tiny.random_waveform(seconds, seed))


FREE = ("--guard_silence", "false")
"""A random model is never sure that somebody speaks."""


def one_line(transcription: Transcription | list[Transcription]) -> str:
    assert isinstance(transcription, Transcription)
    return " ".join(transcription.text.split())


def heard(model: Path, path: Path) -> str:
    transcriber = Transcriber(load_model(model, device="cpu"), decoding=DecodingConfig(guard_silence=False))
    return one_line(transcriber.transcribe(path))
