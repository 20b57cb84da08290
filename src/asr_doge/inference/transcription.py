"""Recordings in, text out: files, arrays and long recordings through one model.

Promises: results come in the order of the inputs; a recording that cannot be read is reported in its place and costs
the others nothing; pieces of many recordings are batched with others of like length, and how they are batched does not
change their text. Memory grows neither with the number of files nor with their length.
It does not print or write files (see `asr_doge.inference.output` and the command line).
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from asr_doge.audio.reading import check_long_enough, prepare_waveform, read_blocks
from asr_doge.audio.voice_activity import has_voice
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
from asr_doge.inference.segmentation import Piece, pieces_of, stitch
from asr_doge.models import LoadedEncoder, LoadedModel, load_encoder_alone, load_model
from asr_doge.models.loading import TORCH_TYPES
from asr_doge.published import Dtype, Quantization


@dataclass(frozen=True)
class Blocks:
    """A recording that comes in blocks.

    Attributes:
        blocks: `[samples]` each, mono, as the model's sampling rate has them; an `AudioError` in place of one says why
            there are no more.
        name: what to call it in messages.
    """

    blocks: Iterable[NDArray[np.float32]]
    name: str = "recording"


Source = str | Path | NDArray[Any] | Tensor | Blocks
"""A file, a mono waveform `[samples]` (or `[channels, samples]`) at 16 kHz, or blocks of one."""

LONGEST_SECONDS = 30.0
"""What an encoder alone reads at once; a whole model's configuration says it."""
WINDOW_SECONDS = 240.0
"""Audio held in memory at once."""


@dataclass(frozen=True)
class Spoken:
    """A recording and the language spoken in it; None where it is not known."""

    source: Source
    language: str | None


@dataclass
class _Recording:
    """A recording on its way: how much of it was read, and what was said in each of its pieces."""

    path: Path | None
    name: str
    language: str | None = None
    samples: int = 0
    overlaps: list[bool] = field(default_factory=list)
    segments: dict[int, Segment] = field(default_factory=dict)
    guards: list[GuardAction] = field(default_factory=list)
    passes: int = 0
    is_read: bool = False
    error: AudioError | None = None

    @property
    def is_done(self) -> bool:
        return self.is_read and (self.error is not None or len(self.segments) == len(self.overlaps))

    def add(self, index: int, piece: Piece, recognition: Recognition) -> None:
        self.segments[index] = segment_of(recognition, piece)
        self.guards += guard_actions(recognition, piece)
        self.passes += recognition.passes

    def finished(self, sampling_rate: int) -> Transcription | FailedTranscription:
        if self.error is not None:
            return FailedTranscription(self.error, self.path)
        segments = stitch([segment for _, segment in sorted(self.segments.items())], self.overlaps)
        text = " ".join(segment.text for segment in segments)
        guards = tuple(sorted(self.guards, key=lambda action: action.start))
        return Transcription(text, self.samples / sampling_rate, self.path, tuple(segments), guards, self.passes)


_Held = tuple[_Recording, int, Piece]
"""A piece that waits for its turn, and which one of which recording it is."""


def segment_of(recognition: Recognition, piece: Piece) -> Segment:
    """What was recognized in a piece of a recording, with times from the recording's start."""
    start, end = piece.speech or (piece.start, piece.end)
    if recognition.speech is not None:
        start, end = (min(piece.start + moment, piece.end) for moment in recognition.speech)
    words = tuple(
        Word(word.text, piece.start + word.start, min(piece.start + word.end, piece.end), word.confidence)
        for word in recognition.words
    )
    alternatives = tuple(Alternative(text, score) for text, score in recognition.alternatives)
    return Segment(recognition.text, start, end, words, alternatives)


def guard_actions(recognition: Recognition, piece: Piece) -> list[GuardAction]:
    """What the guards did in a piece of a recording."""
    return [GuardAction(guard, piece.start, piece.end) for guard in recognition.guards]


class RecordingTranscriber(ABC):
    """Recordings through a model that reads pieces: cut, batched, stitched.

    Args:
        sampling_rate: of the waveforms that the model reads, in Hz.
        max_seconds: longest piece that it reads.
        batch_size: pieces that it is given at once.
        language: as in `Transcriber`.
    """

    def __init__(self, sampling_rate: int, max_seconds: float, batch_size: int, language: str | None) -> None:
        self.sampling_rate = sampling_rate
        self.max_seconds = max_seconds
        self.batch_size = batch_size
        self.language = language

    @abstractmethod
    def recognize_pieces(
        self, pieces: Sequence[Piece], languages: Sequence[str | None] | None = None
    ) -> list[Recognition]:
        """What was said in each piece of one batch, of files and streams; default, in the transcriber's language."""

    # Of the two a `str` fits both, being a sequence of `str`, and is the first.
    @overload
    def transcribe(self, source: Source) -> Transcription: ...  # type: ignore[overload-overlap]  # see above

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
        self, sources: Iterable[Source | Spoken], on_progress: Callable[[float], None] = lambda seconds: None
    ) -> Iterator[Transcription | FailedTranscription]:
        """Transcribe recordings, yielding results in order as they come; unreadable ones yield their error.

        Args:
            sources: read one after the other, as they are needed; each may be of a language of its own.
            on_progress: called with the seconds of audio that were transcribed since the last call.
        """
        recordings: deque[_Recording] = deque()
        for pieces in self._windows(sources, recordings, on_progress):
            self._work_off(pieces, on_progress)
            while recordings and recordings[0].is_done:
                yield recordings.popleft().finished(self.sampling_rate)

    def _windows(
        self, sources: Iterable[Source | Spoken], recordings: deque[_Recording], on_progress: Callable[[float], None]
    ) -> Iterator[list[_Held]]:
        """Read recordings, appending them to `recordings`, and give their pieces whenever enough are held."""
        window: list[_Held] = []
        for given in sources:
            spoken = given if isinstance(given, Spoken) else Spoken(given, self.language)
            source = spoken.source
            path = Path(source) if isinstance(source, str | Path) else None
            name = source.name if isinstance(source, Blocks) else str(path or "array")
            recording = _Recording(path, name, spoken.language)
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
            check_long_enough(recording.samples, self.sampling_rate, recording.name)
        except AudioError as error:
            recording.error = error
        recording.is_read = True

    def _blocks(self, source: Source, recording: _Recording) -> Iterator[NDArray[np.float32]]:
        """A recording block by block, counted."""
        if isinstance(source, str | Path):
            blocks: Iterable[NDArray[np.float32]] = read_blocks(source, self.sampling_rate)
        elif isinstance(source, Blocks):
            blocks = source.blocks
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
            languages = [recording.language for recording, _, _ in batch]
            recognitions = self.recognize_pieces([piece for _, _, piece in batch], languages)
            for (recording, index, piece), recognition in zip(batch, recognitions, strict=True):
                recording.add(index, piece, recognition)
            on_progress(sum(len(piece.samples) for _, _, piece in batch) / self.sampling_rate)


class Transcriber(RecordingTranscriber):
    """A loaded model with everything needed to transcribe.

    Args:
        loaded: from `load_model`, or from `load_encoder_alone` to hear what the encoder's CTC head holds.
        batch_size: pieces the model reads at once.
        decoding: how what was heard becomes text; default, the encoder's draft verified.
        language: spoken in the recordings, as a code such as `de` or a name, for models whose prompt names it.

    Raises:
        ConfigError: the model cannot be decoded so.
    """

    def __init__(
        self,
        loaded: LoadedModel | LoadedEncoder,
        batch_size: int = 8,
        decoding: DecodingConfig | None = None,
        language: str | None = None,
    ) -> None:
        self.recognizer = Recognizer(loaded, decoding or DecodingConfig())
        hearing = self.recognizer.hearing
        longest = loaded.model.config.max_audio_seconds if isinstance(loaded, LoadedModel) else LONGEST_SECONDS
        super().__init__(hearing.sampling_rate, min(longest, hearing.max_seconds), batch_size, language)

    @property
    def loaded(self) -> LoadedModel:
        """The whole model.

        Raises:
            ValueError: only an encoder was loaded.
        """
        if isinstance(self.recognizer.loaded, LoadedEncoder):
            raise ValueError("there is no whole model: only its encoder was loaded")
        return self.recognizer.loaded

    def recognize_pieces(
        self,
        pieces: Sequence[Piece],
        languages: Sequence[str | None] | None = None,
        hotwords: Sequence[Sequence[str]] | None = None,
    ) -> list[Recognition]:
        """As declared; `hotwords` are listened for in each piece, by default those of the configuration."""
        return self.recognizer.recognize(
            [piece.samples for piece in pieces], has_voice, languages or [self.language] * len(pieces), hotwords
        )


def load(
    model: str | Path | None = None,
    device: str | None = None,
    decoding: DecodingConfig | None = None,
    batch_size: int = 8,
    quantization: Quantization = "none",
    language: str | None = None,
    dtype: Dtype = "fp32",
) -> Transcriber:
    """Load a model for transcription; for `--decoder ctc`, its encoder alone.

    Args:
        model: checkpoint folder, hub id, or bundled name; default, the bundled `nano` (spoken digits). For the decoder
            `ctc` also a bare encoder, such as published Granite Speech.
        device: `cpu`, `cuda`, `mps`; default, an accelerator if there is one.
        decoding: how what was heard becomes text.
        batch_size: pieces the model reads at once.
        quantization: as in `asr_doge.models.load_model`.
        language: as in `Transcriber`.
        dtype: of the weights in memory, and of what is computed with them.

    Raises:
        CheckpointError, ConfigError: as in `asr_doge.models.load_model`, and in `Transcriber`.
    """
    alone = decoding is not None and decoding.decoder == "ctc"
    load_parts = load_encoder_alone if alone else load_model
    loaded = load_parts(model, device=device, dtype=TORCH_TYPES[dtype], quantization=quantization)
    return Transcriber(loaded, batch_size, decoding, language)


@overload
def transcribe(  # type: ignore[overload-overlap]  # as of the method above
    source: Source,
    model: str | Path | None = None,
    device: str | None = None,
    decoding: DecodingConfig | None = None,
    language: str | None = None,
) -> Transcription: ...


@overload
def transcribe(
    source: Sequence[Source],
    model: str | Path | None = None,
    device: str | None = None,
    decoding: DecodingConfig | None = None,
    language: str | None = None,
) -> list[Transcription]: ...


def transcribe(
    source: Source | Sequence[Source],
    model: str | Path | None = None,
    device: str | None = None,
    decoding: DecodingConfig | None = None,
    language: str | None = None,
) -> Transcription | list[Transcription]:
    """Load a model and transcribe with it; for more than one call, keep the `Transcriber` that `load` gives.

    Args:
        source: a file, a 16 kHz waveform, or a list of either.
        model, device, decoding, language: as in `load`.

    Raises:
        AudioError: a recording cannot be read.
        CheckpointError, ConfigError: the model cannot be loaded.
    """
    return load(model, device, decoding, language=language).transcribe(source)


def _successful(result: Transcription | FailedTranscription) -> Transcription:
    if isinstance(result, FailedTranscription):
        raise result.error
    return result
