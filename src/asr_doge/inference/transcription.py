"""Recordings in, text out: files, arrays and long recordings through one model.

Promises: results come in the order of the inputs; a recording that cannot be read is reported in its place and costs
the others nothing; chunks of many recordings are batched with others of like length, and how they are batched does not
change their text. Memory grows neither with the number of files nor with their length.
It does not print or write files (see `asr_doge.inference.output` and the command line).
"""

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
from asr_doge.inference.segmentation import Chunk, cut_into_chunks, stitch
from asr_doge.models import LoadedEncoder, LoadedModel, load_encoder_alone, load_model
from asr_doge.models.ctc_head_checkpoints import is_ctc_head
from asr_doge.models.loading import TORCH_TYPES
from asr_doge.published import Dtype, Quantization

Source = str | Path | NDArray[Any] | Tensor
"""A file, or a mono waveform `[samples]` (or `[channels, samples]`) at 16 kHz."""

LONGEST_SECONDS = 30.0
"""What an encoder alone reads at once; a whole model's configuration says it."""
WINDOW_SECONDS = 240.0
"""Audio held in memory at once."""


@dataclass(frozen=True)
class SourceWithLanguage:
    """A recording and the language spoken in it; None where it is not known."""

    source: Source
    language: str | None


@dataclass
class _Recording:
    """A recording on its way: how much of it was read, and what was said in each of its chunks."""

    path: Path | None
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

    def add(self, index: int, chunk: Chunk, recognition: Recognition) -> None:
        self.segments[index] = segment_of(recognition, chunk)
        self.guards += guard_actions(recognition, chunk)
        self.passes += recognition.passes

    def finished(self, sampling_rate: int) -> Transcription | FailedTranscription:
        if self.error is not None:
            return FailedTranscription(self.error, self.path)
        segments = stitch([segment for _, segment in sorted(self.segments.items())], self.overlaps)
        text = " ".join(segment.text for segment in segments)
        guards = tuple(sorted(self.guards, key=lambda action: action.start))
        return Transcription(text, self.samples / sampling_rate, self.path, tuple(segments), guards, self.passes)


_QueuedChunk = tuple[_Recording, int, Chunk]
"""A chunk that waits for its turn, and which one of which recording it is."""


def segment_of(recognition: Recognition, chunk: Chunk) -> Segment:
    """What was recognized in a chunk of a recording, with times from the recording's start."""
    start, end = chunk.speech or (chunk.start, chunk.end)
    if recognition.speech is not None:
        start, end = (min(chunk.start + moment, chunk.end) for moment in recognition.speech)
    words = tuple(
        Word(word.text, chunk.start + word.start, min(chunk.start + word.end, chunk.end), word.confidence)
        for word in recognition.words
    )
    alternatives = tuple(Alternative(text, score) for text, score in recognition.alternatives)
    return Segment(recognition.text, start, end, words, alternatives)


def guard_actions(recognition: Recognition, chunk: Chunk) -> list[GuardAction]:
    """What the guards did in a chunk of a recording."""
    return [GuardAction(guard, chunk.start, chunk.end) for guard in recognition.guards]


class Transcriber:
    """A loaded model with everything needed to transcribe.

    Args:
        loaded: from `load_model`, or from `load_encoder_alone` to hear what the encoder's CTC head holds.
        batch_size: chunks the model reads at once.
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
        self.batch_size = batch_size
        self.language = language
        speech_encoder = self.recognizer.speech_encoder
        self.sampling_rate = speech_encoder.sampling_rate
        longest = loaded.model.config.max_audio_seconds if isinstance(loaded, LoadedModel) else LONGEST_SECONDS
        self.max_seconds = min(longest, speech_encoder.max_seconds)

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
        self,
        sources: Iterable[Source | SourceWithLanguage],
        on_progress: Callable[[float], None] = lambda seconds: None,
    ) -> Iterator[Transcription | FailedTranscription]:
        """Transcribe recordings, yielding results in order as they come; unreadable ones yield their error.

        Args:
            sources: read one after the other, as they are needed; each may be of a language of its own.
            on_progress: called with the seconds of audio that were transcribed since the last call.
        """
        recordings: deque[_Recording] = deque()
        for chunks in self._windows(sources, recordings, on_progress):
            self._transcribe_chunks(chunks, on_progress)
            while recordings and recordings[0].is_done:
                yield recordings.popleft().finished(self.sampling_rate)

    def _windows(
        self,
        sources: Iterable[Source | SourceWithLanguage],
        recordings: deque[_Recording],
        on_progress: Callable[[float], None],
    ) -> Iterator[list[_QueuedChunk]]:
        """Read recordings, appending them to `recordings`, and give their chunks whenever enough are held."""
        window: list[_QueuedChunk] = []
        for given in sources:
            spoken = given if isinstance(given, SourceWithLanguage) else SourceWithLanguage(given, self.language)
            source = spoken.source
            recording = _Recording(Path(source) if isinstance(source, str | Path) else None, spoken.language)
            recordings.append(recording)
            for chunk in self._chunks(source, recording):
                if chunk.is_gap:
                    recording.overlaps[-1:] = [False] * bool(recording.overlaps)
                    on_progress(len(chunk.samples) / self.sampling_rate)
                    continue
                if self._is_enough(window):  # now, as what is wrong with a recording shows only after its last chunk
                    yield window
                    window = []
                window.append((recording, len(recording.overlaps), chunk))
                recording.overlaps.append(chunk.overlaps_next)
            if not window or self._is_enough(window):
                yield window
                window = []
        yield window

    def _is_enough(self, window: list[_QueuedChunk]) -> bool:
        return sum(len(chunk.samples) for _, _, chunk in window) >= WINDOW_SECONDS * self.sampling_rate

    def _chunks(self, source: Source, recording: _Recording) -> Iterator[Chunk]:
        """The chunks of a recording as they are read; an error ends them."""
        try:
            yield from cut_into_chunks(self._blocks(source, recording), self.max_seconds)
            check_long_enough(recording.samples, self.sampling_rate, str(recording.path or "array"))
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

    def _transcribe_chunks(self, chunks: list[_QueuedChunk], on_progress: Callable[[float], None]) -> None:
        """Transcribe all chunks held, the longest first, in batches of like length."""
        chunks = [queued for queued in chunks if queued[0].error is None]
        chunks.sort(key=lambda queued: len(queued[2].samples), reverse=True)
        for start in range(0, len(chunks), self.batch_size):
            batch = chunks[start : start + self.batch_size]
            languages = [recording.language for recording, _, _ in batch]
            recognitions = self.recognize_chunks([chunk for _, _, chunk in batch], languages)
            for (recording, index, chunk), recognition in zip(batch, recognitions, strict=True):
                recording.add(index, chunk, recognition)
            on_progress(sum(len(chunk.samples) for _, _, chunk in batch) / self.sampling_rate)

    def recognize_chunks(
        self, chunks: Sequence[Chunk], languages: Sequence[str | None] | None = None
    ) -> list[Recognition]:
        """What was said in each chunk of one batch, of files and streams; default, in the transcriber's language."""
        return self.recognizer.recognize(
            [chunk.samples for chunk in chunks], has_voice, languages or [self.language] * len(chunks)
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
    """Load a model for transcription; for `--decoder ctc`, or of a CTC head's folder, its encoder alone.

    Args:
        model: checkpoint folder, hub id, or bundled name; default, the bundled `nano` (spoken digits). For the decoder
            `ctc` also a bare encoder, such as published Granite Speech.
        device: `cpu`, `cuda`, `mps`; default, an accelerator if there is one.
        decoding: how what was heard becomes text.
        batch_size: chunks the model reads at once.
        quantization: as in `asr_doge.models.load_model`.
        language: as in `Transcriber`.
        dtype: of the weights in memory, and of what is computed with them.

    Raises:
        CheckpointError, ConfigError: as in `asr_doge.models.load_model`, and in `Transcriber`.
    """
    decoder = decoding.decoder if decoding is not None else None
    alone = decoder == "ctc" or (decoder is None and model is not None and is_ctc_head(model))
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
