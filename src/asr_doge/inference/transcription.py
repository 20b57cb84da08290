"""Recordings in, text out: files, arrays and long recordings through one model.

Promises: results come in the order of the inputs; a recording that cannot be read is reported in its place and costs
the others nothing; pieces of many recordings are batched with others of like length, and how they are batched does not
change their text. Memory grows neither with the number of files nor with their length.
It does not print or write files (see `asr_doge.inference.output` and the command line).
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asr_doge.audio.reading import prepare_waveform, read_blocks
from asr_doge.errors import AudioError
from asr_doge.inference.results import FailedTranscription, Segment, Transcription
from asr_doge.inference.segmentation import Piece, pieces_of, stitch
from asr_doge.models import LoadedModel, load_model

Source = str | Path | NDArray[Any] | Tensor
"""A file, or a mono waveform `[samples]` (or `[channels, samples]`) at 16 kHz."""

MINIMUM_SECONDS = 0.1
"""Shorter than any word: such a recording is a mistake, and gets told so."""
SILENCE_PEAK = 10 ** (-80 / 20)
"""Nothing louder than -80 dB of full scale is digital silence, which needs no model to be empty."""
WINDOW_SECONDS = 240.0
"""Audio held in memory at once."""


@dataclass
class _Recording:
    """A recording on its way: how much of it was read, and what was said in each of its pieces."""

    path: Path | None
    samples: int = 0
    overlaps: list[bool] = field(default_factory=list)
    segments: dict[int, Segment] = field(default_factory=dict)
    is_read: bool = False
    error: AudioError | None = None

    @property
    def is_done(self) -> bool:
        return self.is_read and (self.error is not None or len(self.segments) == len(self.overlaps))

    def finished(self, sampling_rate: int) -> Transcription | FailedTranscription:
        if self.error is not None:
            return FailedTranscription(self.error, self.path)
        segments = stitch([segment for _, segment in sorted(self.segments.items())], self.overlaps)
        text = " ".join(segment.text for segment in segments)
        return Transcription(text, self.samples / sampling_rate, self.path, tuple(segments))


_Held = tuple[_Recording, int, Piece]
"""A piece that waits for its turn, and which one of which recording it is."""


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
        self.max_seconds = loaded.model.config.max_audio_seconds

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

    def transcribe_each(
        self, sources: Iterable[Source], on_progress: Callable[[float], None] = lambda seconds: None
    ) -> Iterator[Transcription | FailedTranscription]:
        """Transcribe recordings, yielding results in order as they come; unreadable ones yield their error.

        Args:
            sources: read one after the other, as they are needed.
            on_progress: called with the seconds of audio that were transcribed since the last call.
        """
        recordings: deque[_Recording] = deque()
        for pieces in self._windows(sources, recordings, on_progress):
            self._work_off(pieces, on_progress)
            while recordings and recordings[0].is_done:
                yield recordings.popleft().finished(self.sampling_rate)

    def _windows(
        self, sources: Iterable[Source], recordings: deque[_Recording], on_progress: Callable[[float], None]
    ) -> Iterator[list[_Held]]:
        """Read recordings, appending them to `recordings`, and give their pieces whenever enough are held."""
        window: list[_Held] = []
        for source in sources:
            recording = _Recording(Path(source) if isinstance(source, str | Path) else None)
            recordings.append(recording)
            for piece in self._pieces(source, recording):
                if piece.is_gap:
                    recording.overlaps[-1:] = [False] * bool(recording.overlaps)
                    on_progress(len(piece.samples) / self.sampling_rate)
                    continue
                if self._is_enough(window):  # now, as what is wrong with a recording shows only after its last piece
                    yield window
                    window = []
                window.append((recording, len(recording.overlaps), piece))
                recording.overlaps.append(piece.overlaps_next)
            if not window or self._is_enough(window):
                yield window
                window = []
        yield window

    def _is_enough(self, window: list[_Held]) -> bool:
        return sum(len(piece.samples) for _, _, piece in window) >= WINDOW_SECONDS * self.sampling_rate

    def _pieces(self, source: Source, recording: _Recording) -> Iterator[Piece]:
        """The pieces of a recording as they are read; an error ends them."""
        try:
            yield from pieces_of(self._blocks(source, recording), self.max_seconds)
            duration = recording.samples / self.sampling_rate
            if duration < MINIMUM_SECONDS:
                raise AudioError(
                    f"{recording.path or 'array'} is {1000 * duration:.0f} ms long: too short to hold a word"
                    f" (at least {1000 * MINIMUM_SECONDS:.0f} ms)"
                )
        except AudioError as error:
            recording.error = error
        recording.is_read = True

    def _blocks(self, source: Source, recording: _Recording) -> Iterator[NDArray[np.float32]]:
        """A recording block by block, counted."""
        if isinstance(source, str | Path):
            blocks = read_blocks(source, self.sampling_rate)
        else:
            blocks = iter([prepare_waveform(source, self.sampling_rate, self.sampling_rate)])
        for block in blocks:
            recording.samples += len(block)
            yield block

    def _work_off(self, pieces: list[_Held], on_progress: Callable[[float], None]) -> None:
        """Transcribe all pieces held, the longest first, in batches of like length."""
        pieces = [held for held in pieces if held[0].error is None]
        pieces.sort(key=lambda held: len(held[2].samples), reverse=True)
        for start in range(0, len(pieces), self.batch_size):
            batch = pieces[start : start + self.batch_size]
            segments = self.transcribe_pieces([piece for _, _, piece in batch])
            for (recording, index, _), segment in zip(batch, segments, strict=True):
                recording.segments[index] = segment
            on_progress(sum(len(piece.samples) for _, _, piece in batch) / self.sampling_rate)

    def transcribe_pieces(self, pieces: Sequence[Piece]) -> list[Segment]:
        """What was said in each piece of one batch; in files and streams alike."""
        texts = self.transcribe_waveforms([piece.samples for piece in pieces])
        return [piece.segment(text) for piece, text in zip(pieces, texts, strict=True)]

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
