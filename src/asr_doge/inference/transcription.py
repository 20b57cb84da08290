"""Recordings in, text out: files, arrays and long recordings through one model.

Promises: results come in the order of the inputs; a recording that cannot be read is reported in its place and costs
the others nothing; pieces of many recordings are batched with others of like length, and how they are batched does not
change their text. Memory does not grow with the number of files.
It does not print or write files (see `asr_doge.inference.output` and the command line).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asr_doge.audio.reading import prepare_waveform, read_audio
from asr_doge.errors import AudioError
from asr_doge.inference.results import FailedTranscription, Transcription
from asr_doge.inference.segmentation import split_at_pauses
from asr_doge.models import LoadedModel, load_model

Source = str | Path | NDArray[Any] | Tensor
"""A file, or a mono waveform `[samples]` (or `[channels, samples]`) at 16 kHz."""

MINIMUM_SECONDS = 0.1
"""Shorter than any word: such a recording is a mistake, and gets told so."""
SILENCE_PEAK = 10 ** (-80 / 20)
"""Nothing louder than -80 dB of full scale is digital silence, which needs no model to be empty."""
WINDOW_SECONDS = 240.0
"""Audio held in memory at once, apart from a single longer recording."""


@dataclass
class _Recording:
    """A recording on its way: its pieces, and the texts of those that are done."""

    path: Path | None
    duration: float
    pieces: list[NDArray[np.float32]]
    texts: dict[int, str] = field(default_factory=dict)

    def finished(self) -> Transcription:
        text = " ".join(text for _, text in sorted(self.texts.items()) if text)
        return Transcription(text, self.duration, self.path)


class Transcriber:
    """A loaded model with everything needed to transcribe.

    Args:
        loaded: from `load_model`.
        batch_size: pieces the model reads at once.
        num_beams: 1 is greedy; more is beam search.
    """

    def __init__(self, loaded: LoadedModel, batch_size: int = 8, num_beams: int = 1) -> None:
        self.loaded = loaded
        self.batch_size = batch_size
        self.num_beams = num_beams
        self.sampling_rate: int = loaded.processor.feature_extractor.sampling_rate

    # Of the two a `str` fits both, being a sequence of `str`, and is the first.
    @overload
    def transcribe(self, source: Source) -> Transcription: ...  # type: ignore[overload-overlap]

    @overload
    def transcribe(self, source: Sequence[Source]) -> list[Transcription]: ...

    def transcribe(self, source: Source | Sequence[Source]) -> Transcription | list[Transcription]:
        """Transcribe one recording, or a list of them: a list in, a list out, in order.

        Raises:
            AudioError: a recording cannot be read.
        """
        if isinstance(source, Sequence) and not isinstance(source, str):
            return [_successful(result) for result in self.transcribe_each(source)]
        return _successful(next(self.transcribe_each([source])))

    def transcribe_each(self, sources: Iterable[Source]) -> Iterator[Transcription | FailedTranscription]:
        """Transcribe recordings, yielding results in order as they come; unreadable ones yield their error."""
        window: list[_Recording | FailedTranscription] = []
        held_seconds = 0.0
        for source in sources:
            recording = self._read(source)
            window.append(recording)
            held_seconds += recording.duration if isinstance(recording, _Recording) else 0.0
            if held_seconds >= WINDOW_SECONDS:
                yield from self._finish(window)
                window, held_seconds = [], 0.0
        yield from self._finish(window)

    def _read(self, source: Source) -> _Recording | FailedTranscription:
        path = None
        try:
            if isinstance(source, str | Path):
                path = Path(source)
                waveform = read_audio(path, self.sampling_rate)
            else:
                waveform = prepare_waveform(source, self.sampling_rate, self.sampling_rate)
            duration = len(waveform) / self.sampling_rate
            if duration < MINIMUM_SECONDS:
                raise AudioError(
                    f"{path or 'array'} is {1000 * duration:.0f} ms long: too short to hold a word"
                    f" (at least {1000 * MINIMUM_SECONDS:.0f} ms)"
                )
        except AudioError as error:
            return FailedTranscription(error, path)
        pieces = split_at_pauses(waveform, self.sampling_rate, self.loaded.model.config.max_audio_seconds)
        return _Recording(path, duration, pieces)

    def _finish(self, window: list[_Recording | FailedTranscription]) -> Iterator[Transcription | FailedTranscription]:
        """Transcribe the pieces of all recordings held, the longest first, in batches of like length."""
        pieces = [
            (recording, index)
            for recording in window
            if isinstance(recording, _Recording)
            for index in range(len(recording.pieces))
        ]
        pieces.sort(key=lambda piece: len(piece[0].pieces[piece[1]]), reverse=True)
        for start in range(0, len(pieces), self.batch_size):
            batch = pieces[start : start + self.batch_size]
            texts = self.transcribe_waveforms([recording.pieces[index] for recording, index in batch])
            for (recording, index), text in zip(batch, texts, strict=True):
                recording.texts[index] = text
        for result in window:
            yield result.finished() if isinstance(result, _Recording) else result

    @torch.inference_mode()
    def transcribe_waveforms(self, waveforms: Sequence[NDArray[np.float32]]) -> list[str]:
        """Texts of one batch of pieces `[samples]`, at the encoder's sampling rate."""
        texts = [""] * len(waveforms)
        audible = [index for index, waveform in enumerate(waveforms) if np.abs(waveform).max() > SILENCE_PEAK]
        if audible:
            batch = self.loaded.processor(
                audio=[waveforms[index] for index in audible], sampling_rate=self.sampling_rate
            ).to(self.loaded.model.device)
            ids = self.loaded.model.generate(**batch, num_beams=self.num_beams)
            for index, text in zip(audible, self.loaded.processor.batch_decode(ids), strict=True):
                texts[index] = text
        return texts


def load(model: str | Path | None = None, device: str | None = None) -> Transcriber:
    """Load a model for transcription.

    Args:
        model: checkpoint folder, hub id, or bundled name; default, the bundled `nano` (spoken digits).
        device: `cpu`, `cuda`, `mps`; default, an accelerator if there is one.

    Raises:
        CheckpointError, ConfigError: as in `asr_doge.models.load_model`.
    """
    return Transcriber(load_model(model, device=device))


@overload
def transcribe(  # type: ignore[overload-overlap]
    source: Source, model: str | Path | None = None, device: str | None = None
) -> Transcription: ...


@overload
def transcribe(
    source: Sequence[Source], model: str | Path | None = None, device: str | None = None
) -> list[Transcription]: ...


def transcribe(
    source: Source | Sequence[Source],
    model: str | Path | None = None,
    device: str | None = None,
) -> Transcription | list[Transcription]:
    """Load a model and transcribe with it; for more than one call, keep the `Transcriber` that `load` gives.

    Args:
        source: a file, a 16 kHz waveform, or a list of either.
        model, device: as in `load`.

    Raises:
        AudioError: a recording cannot be read.
        CheckpointError, ConfigError: the model cannot be loaded.
    """
    return load(model, device).transcribe(source)


def _successful(result: Transcription | FailedTranscription) -> Transcription:
    if isinstance(result, FailedTranscription):
        raise result.error
    return result
