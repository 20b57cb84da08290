"""Measure other recognizers on the same files in the same run.

Promises: a peer gets the same waveform as our own model, and its texts are scored by the same rules. Its dependencies
beyond our own are an extra, imported when a peer is requested; no peer's own code is run (`trust_remote_code`), and no
pickled weights are read.
It tunes no peer: they run with their authors' settings.
"""

import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from asr_doge.audio.reading import read_audio
from asr_doge.audio.resampling import SAMPLE_RATE
from asr_doge.benchmark.speed import TimedRun
from asr_doge.errors import AudioError, CheckpointError, ConfigError, first_line
from asr_doge.inference.results import FailedTranscription, Transcription
from asr_doge.models.fetching import can_be_fetched, find_or_fetch

HUGGING_FACE = "hf:"
POCKETSPHINX = "pocketsphinx"


class Peer(Protocol):
    """A recognizer: a waveform in, text out.

    Attributes:
        name: as the user wrote it.
        version: what the texts depend on, for the report.
    """

    name: str
    version: str

    def transcribe(self, waveform: NDArray[np.float32]) -> str:
        """The text of a waveform `[samples]` at 16 kHz."""


def load_peer(name: str, device: torch.device) -> Peer:
    """A peer by the name that `--peer` takes.

    Raises:
        ConfigError: as in `check_peer`.
        CheckpointError: its model cannot be fetched or loaded.
    """
    check_peer(name)
    return PocketSphinx() if name == POCKETSPHINX else HuggingFace(name, device)


def check_peer(name: str) -> None:
    """Refuse a peer that cannot be loaded, before hours are spent on the others.

    Raises:
        ConfigError: no such peer, or its package is not installed.
    """
    if name == POCKETSPHINX:
        if find_spec(POCKETSPHINX) is None:
            raise ConfigError(f"--peer {name} needs a package: pip install 'asr-doge[peers]'")
    elif not name.startswith(HUGGING_FACE) or name == HUGGING_FACE:
        raise ConfigError(
            f"--peer {name}: no such peer; use {POCKETSPHINX}, or {HUGGING_FACE} and a hub id or a folder"
        )


def transcribe_file(peer: Peer, path: Path) -> Transcription | FailedTranscription:
    """A file's transcript, or why there is none: the file cannot be read, or the peer fails on it."""
    try:
        waveform = read_audio(path, SAMPLE_RATE)
    except AudioError as error:
        return FailedTranscription(error, path)
    try:
        text = peer.transcribe(waveform)
    except Exception as error:  # a peer's code may raise anything on one file; the others must still be measured
        return FailedTranscription(AudioError(f"{path}: {peer.name} fails on it ({first_line(error)})"), path)
    return Transcription(text, len(waveform) / SAMPLE_RATE, path)


def time_peer(peer: Peer, path: Path) -> TimedRun:
    """Transcribe one file once, from opening it to the text; its words count as tokens.

    Raises:
        AudioError: it cannot be read.
    """
    start = time.perf_counter()
    waveform = read_audio(path, SAMPLE_RATE)
    text = peer.transcribe(waveform)
    return TimedRun(time.perf_counter() - start, len(waveform) / SAMPLE_RATE, len(text.split()))


class PocketSphinx:
    """CMU PocketSphinx with the American English model in its wheel."""

    name = POCKETSPHINX

    def __init__(self) -> None:
        from pocketsphinx import Decoder

        self._decoder = Decoder(samprate=SAMPLE_RATE, loglevel="FATAL")
        self.version = f"pocketsphinx {version('pocketsphinx')}"

    def transcribe(self, waveform: NDArray[np.float32]) -> str:
        """See `Peer.transcribe`."""
        samples = (np.clip(waveform, -1.0, 1.0) * np.iinfo(np.int16).max).astype(np.int16)
        self._decoder.start_utt()
        self._decoder.process_raw(samples.tobytes(), full_utt=True)
        self._decoder.end_utt()
        hypothesis = self._decoder.hyp()
        return hypothesis.hypstr if hypothesis is not None else ""


class HuggingFace:
    """Any model that transformers' `automatic-speech-recognition` pipeline runs."""

    def __init__(self, name: str, device: torch.device) -> None:
        from transformers import pipeline

        self.name = name
        model = name.removeprefix(HUGGING_FACE)
        folder = find_or_fetch(model).location if can_be_fetched(model) else model
        try:
            self._pipeline: Any = pipeline(
                "automatic-speech-recognition",
                model=folder,
                device=device,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            )
        except Exception as error:  # a model's own loading may raise anything
            raise CheckpointError(
                f"--peer {name} cannot be loaded as a speech recogniser: {first_line(error)}"
            ) from error
        commit = getattr(self._pipeline.model.config, "_commit_hash", None)
        self.version = f"{model}{f' at {commit}' if commit else ''}, transformers {version('transformers')}"

    def transcribe(self, waveform: NDArray[np.float32]) -> str:
        """See `Peer.transcribe`."""
        # Whisper and similar models read 30 s at once, and longer audio only with timestamps.
        longer = len(waveform) > 30 * SAMPLE_RATE and self._pipeline.type == "seq2seq_whisper"
        options = {"return_timestamps": True} if longer else {}
        return str(self._pipeline({"raw": waveform, "sampling_rate": SAMPLE_RATE}, **options)["text"])
