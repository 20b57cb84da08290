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
from numpy.typing import NDArray
from torch import Tensor

from asr_doge.audio.reading import prepare_waveform, read_audio
from asr_doge.decoding.configuration import DecodingConfig
from asr_doge.decoding.recognition import Recognition, Recognizer
from asr_doge.errors import AudioError
from asr_doge.inference.results import (
    Alternative,
    FailedTranscription,
    GuardAction,
    Segment,
    Transcription,
    Word,
)
from asr_doge.inference.segmentation import split_at_pauses
from asr_doge.models import LoadedEncoder, LoadedModel, load_encoder_alone, load_model

Source = str | Path | NDArray[Any] | Tensor
"""A file, or a mono waveform `[samples]` (or `[channels, samples]`) at 16 kHz."""

MINIMUM_SECONDS = 0.1
"""Shorter than any word: such a recording is a mistake, and gets told so."""
LONGEST_SECONDS = 30.0
"""What an encoder alone reads at once; a whole model's configuration says it."""
WINDOW_SECONDS = 240.0
"""Audio held in memory at once, apart from a single longer recording."""


@dataclass
class _Recording:
    """A recording on its way: its pieces, and what was recognized in those that are done."""

    path: Path | None
    duration: float
    sampling_rate: int
    pieces: list[NDArray[np.float32]]
    recognized: dict[int, Recognition] = field(default_factory=dict)

    def finished(self) -> Transcription:
        segments: list[Segment] = []
        guards: list[GuardAction] = []
        start = 0.0
        for index, piece in enumerate(self.pieces):
            recognition, end = self.recognized[index], start + len(piece) / self.sampling_rate
            guards += [GuardAction(guard, start, end) for guard in recognition.guards]
            segments += [segment_of(recognition, start, end)] if recognition.text else []
            start = end
        text = " ".join(segment.text for segment in segments)
        passes = sum(recognition.passes for recognition in self.recognized.values())
        return Transcription(text, self.duration, self.path, tuple(segments), tuple(guards), passes)


def segment_of(recognition: Recognition, start: float, end: float) -> Segment:
    """What was recognized in the piece of a recording from `start` to `end` (seconds)."""
    words = tuple(
        Word(word.text, start + word.start, min(start + word.end, end), word.confidence) for word in recognition.words
    )
    speech = recognition.speech
    if speech is not None:
        start, end = start + speech[0], min(start + speech[1], end)
    alternatives = tuple(Alternative(text, score) for text, score in recognition.alternatives)
    return Segment(recognition.text, start, end, words, alternatives)


class Transcriber:
    """A loaded model with everything needed to transcribe.

    Args:
        loaded: from `load_model`, or from `load_encoder_alone` to hear what the encoder's CTC head holds.
        batch_size: pieces the model reads at once.
        decoding: how what was heard becomes text; default, the encoder's draft verified.

    Raises:
        ConfigError: the model cannot be decoded so.
    """

    def __init__(
        self, loaded: LoadedModel | LoadedEncoder, batch_size: int = 8, decoding: DecodingConfig | None = None
    ) -> None:
        self.recognizer = Recognizer(loaded, decoding or DecodingConfig())
        self.batch_size = batch_size
        hearing = self.recognizer.hearing
        self.sampling_rate = hearing.sampling_rate
        longest = loaded.model.config.max_audio_seconds if isinstance(loaded, LoadedModel) else LONGEST_SECONDS
        self.max_seconds = min(longest, hearing.max_seconds)

    @property
    def loaded(self) -> LoadedModel:
        """The whole model.

        Raises:
            ValueError: only an encoder was loaded.
        """
        if isinstance(self.recognizer.loaded, LoadedEncoder):
            raise ValueError("there is no whole model: only its encoder was loaded")
        return self.recognizer.loaded

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
        pieces = split_at_pauses(waveform, self.sampling_rate, self.max_seconds)
        return _Recording(path, duration, self.sampling_rate, pieces)

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
            recognized = self.recognizer.recognize([recording.pieces[index] for recording, index in batch])
            for (recording, index), recognition in zip(batch, recognized, strict=True):
                recording.recognized[index] = recognition
        for result in window:
            yield result.finished() if isinstance(result, _Recording) else result


def load(
    model: str | Path | None = None,
    device: str | None = None,
    decoding: DecodingConfig | None = None,
    batch_size: int = 8,
) -> Transcriber:
    """Load a model for transcription; for `--decoder ctc`, its encoder alone.

    Args:
        model: checkpoint folder, hub id, or bundled name; default, the bundled `nano` (spoken digits). For the decoder
            `ctc` also a bare encoder, such as published Granite Speech.
        device: `cpu`, `cuda`, `mps`; default, an accelerator if there is one.
        decoding: how what was heard becomes text.
        batch_size: pieces the model reads at once.

    Raises:
        CheckpointError, ConfigError: as in `asr_doge.models.load_model`, and in `Transcriber`.
    """
    alone = decoding is not None and decoding.decoder == "ctc"
    loaded = load_encoder_alone(model, device=device) if alone else load_model(model, device=device)
    return Transcriber(loaded, batch_size, decoding)


@overload
def transcribe(  # type: ignore[overload-overlap]
    source: Source,
    model: str | Path | None = None,
    device: str | None = None,
    decoding: DecodingConfig | None = None,
) -> Transcription: ...


@overload
def transcribe(
    source: Sequence[Source],
    model: str | Path | None = None,
    device: str | None = None,
    decoding: DecodingConfig | None = None,
) -> list[Transcription]: ...


def transcribe(
    source: Source | Sequence[Source],
    model: str | Path | None = None,
    device: str | None = None,
    decoding: DecodingConfig | None = None,
) -> Transcription | list[Transcription]:
    """Load a model and transcribe with it; for more than one call, keep the `Transcriber` that `load` gives.

    Args:
        source: a file, a 16 kHz waveform, or a list of either.
        model, device, decoding: as in `load`.

    Raises:
        AudioError: a recording cannot be read.
        CheckpointError, ConfigError: the model cannot be loaded.
    """
    return load(model, device, decoding).transcribe(source)


def _successful(result: Transcription | FailedTranscription) -> Transcription:
    if isinstance(result, FailedTranscription):
        raise result.error
    return result
