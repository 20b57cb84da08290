"""Transcribe recordings: files, arrays and long recordings through one model.

Promises: results come in the order of the inputs; a recording that cannot be read gives an error in its place and does
not affect the others; chunks of many recordings are batched with others of similar length, which does not change their
text. While the model works on some chunks, the next ones are read and cut; on a CPU it works on two batches at a time.
Memory grows with the batch size, and neither with the number of files nor with their length.
It does not print or write files (see `asr_doge.inference.output` and the command line).
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from asr_doge.audio.forking import call_fork_safe
from asr_doge.audio.level import normalize_level, without_rumble
from asr_doge.audio.reading import check_long_enough
from asr_doge.audio.voice_activity import has_voice
from asr_doge.choices import LoadDtype, Quantization
from asr_doge.decoding.configuration import DecodingConfig
from asr_doge.decoding.recognition import Recognition, Recognizer
from asr_doge.errors import AudioError
from asr_doge.inference.batches import BatchRunner, batches_at_a_time
from asr_doge.inference.chunking import Chunk
from asr_doge.inference.cutting import cut_into_chunks
from asr_doge.inference.loading import load_model_or_encoder
from asr_doge.inference.recordings import QueuedChunk, Recording, num_samples
from asr_doge.inference.results import FailedTranscription, Transcription, successful
from asr_doge.inference.sources import BlockSource, ChunkSource, as_sources, path_of, source_blocks, with_defaults
from asr_doge.inference.sources import Source as Source
from asr_doge.inference.sources import SourceWithOptions as SourceWithOptions
from asr_doge.inference.written import written
from asr_doge.models import LoadedEncoder, LoadedModel
from asr_doge.models.punctuation import Punctuator
from asr_doge.read_ahead import read_ahead

LONGEST_SECONDS = 30.0
"""Seconds that an encoder alone reads at once; a whole model's configuration states its own limit."""
ROUNDING_SECONDS = 0.001
"""Seconds by which a rounded duration in a manifest may be shorter than its resampled recording."""
BUFFER_SECONDS = 240.0
"""Seconds of audio that are read, and then transcribed, together, or more if a batch needs more; twice as much, and
some batches, are in memory."""
FIRST_BUFFER_SECONDS = 60.0
"""The same at the beginning, when the model waits for it; then twice as much each time, up to `BUFFER_SECONDS`."""


@dataclass
class _Buffer:
    """Chunks to transcribe together.

    Attributes:
        wanted: seconds of speech that it should hold.
        chunks: of speech, of whichever recordings.
        skipped: samples beside and between them in which nobody speaks.
    """

    wanted: float
    chunks: list[QueuedChunk] = field(default_factory=list)
    skipped: int = 0

    def following(self) -> "_Buffer":
        """The next, which wants more if this one gave the model work meanwhile."""
        return _Buffer(min(2 * self.wanted, BUFFER_SECONDS) if self.chunks else self.wanted)


class RecordingTranscriber(ABC):
    """Transcribes recordings with a model that recognizes chunks: cuts, batches and joins them.

    Args:
        sampling_rate: of the waveforms that the model reads, in Hz.
        max_seconds: longest chunk that it reads.
        batch_size: chunks that it reads at once.
        language: as in `Transcriber`.
        cut_at_pauses: as in `DecodingConfig`.

    Attributes:
        unsure_below: as in `ASRDogeConfig`.
        punctuator: writes the texts of recordings with case and punctuation; None leaves them plain.
        parallel: batches that are recognized at a time, each by its share of torch's threads.
    """

    unsure_below: float | None = None
    punctuator: Punctuator | None = None
    parallel: int = 1

    def __init__(
        self, sampling_rate: int, max_seconds: float, batch_size: int, language: str | None, cut_at_pauses: bool
    ) -> None:
        self.sampling_rate = sampling_rate
        self.max_seconds = max_seconds
        self.batch_size = batch_size
        self.language = language
        self.cut_at_pauses = cut_at_pauses

    @abstractmethod
    def recognize_chunks(
        self, chunks: Sequence[Chunk], languages: Sequence[str | None] | None = None
    ) -> list[Recognition]:
        """Recognize each chunk of one batch, of files and streams; default, in the transcriber's language."""

    def recognize_open(self, chunk: Chunk) -> Recognition | None:
        """Recognize a chunk that is not over yet; None if that is no longer wanted, as its end has come meanwhile."""
        return self.recognize_chunks([chunk])[0]

    def cut(self, blocks: Iterable[NDArray[np.float32]]) -> Iterator[Chunk]:
        """Cut one recording, which arrives in blocks `[samples]`, into chunks."""
        return cut_into_chunks(blocks, self.max_seconds, self.cut_at_pauses)

    # A single recording can be a sequence too; the first overload then applies.
    @overload
    def transcribe(self, source: Source | Sequence[float], sampling_rate: float | None = None) -> Transcription: ...  # type: ignore[overload-overlap]  # a recording may be iterable

    @overload
    def transcribe(self, source: Iterable[Source], sampling_rate: float | None = None) -> list[Transcription]: ...

    def transcribe(
        self, source: Source | Sequence[float] | Iterable[Source], sampling_rate: float | None = None
    ) -> Transcription | list[Transcription]:
        """Transcribe one recording, or several: any iterable of recordings gives a list of results.

        Args:
            source: see `Source`. A list or generator of numbers is one recording.
            sampling_rate: of samples, in Hz; default, the model's 16 kHz. They are resampled. Files state their own.

        Raises:
            AudioError: a recording cannot be read, or `source` is not a recording.
        """
        sources, is_one = as_sources(source)
        results = [successful(result) for result in self._transcribe_each(sources, lambda _: None, sampling_rate)]
        return results[0] if is_one else results

    def transcribe_each(
        self,
        sources: Iterable[Source | SourceWithOptions],
        on_progress: Callable[[float], None] = lambda seconds: None,
        sampling_rate: float | None = None,
    ) -> Iterator[Transcription | FailedTranscription]:
        """Transcribe recordings, yielding results in order as they come; unreadable ones yield their error.

        The model may be at work on later recordings while a result is used: do not fork a process then (see
        `asr_doge.audio.forking`).

        Args:
            sources: read one after the other, as they are needed; each may have its own language, rate and channel.
            on_progress: called with the seconds of audio that were transcribed since the last call.
            sampling_rate: as in `transcribe`.
        """
        return self._transcribe_each(as_sources(sources)[0], on_progress, sampling_rate)

    def _transcribe_each(
        self, sources: Iterable[Any], on_progress: Callable[[float], None], sampling_rate: float | None
    ) -> Iterator[Transcription | FailedTranscription]:
        recordings: deque[Recording] = deque()
        each = (with_defaults(source, self.language, sampling_rate) for source in sources)
        stopped = Event()
        with BatchRunner(self._recognize_queued, num_samples, self.batch_size, self.parallel) as batches:
            for buffer in read_ahead(self._buffers(each, recordings, stopped), stopped.set):
                on_progress(buffer.skipped / self.sampling_rate)
                for batch, recognitions in batches.submit([one for one in buffer.chunks if one[0].error is None]):
                    self._add(batch, recognitions, on_progress)
                    yield from self._finished(recordings)
                yield from self._finished(recordings)  # those without speech, and those that could not be read
            for batch, recognitions in batches.drain():
                self._add(batch, recognitions, on_progress)
                yield from self._finished(recordings)

    def _recognize_queued(self, batch: Sequence[QueuedChunk]) -> list[Recognition]:
        languages = [recording.language for recording, _, _ in batch]
        return self.recognize_chunks([chunk for _, _, chunk in batch], languages)

    def _add(
        self, batch: list[QueuedChunk], recognitions: list[Recognition], on_progress: Callable[[float], None]
    ) -> None:
        """Give recordings the recognitions of their chunks."""
        for (recording, index, chunk), recognition in zip(batch, recognitions, strict=True):
            recording.add(index, chunk, recognition)
        on_progress(sum(len(chunk.samples) for _, _, chunk in batch) / self.sampling_rate)

    def _finished(self, recordings: deque[Recording]) -> Iterator[Transcription | FailedTranscription]:
        """Take out the first recordings, up to one that is still being transcribed."""
        while recordings and recordings[0].is_done:
            result = recordings.popleft().finished(self.sampling_rate, self.unsure_below)
            yield written(result, self.punctuator)

    def _buffers(
        self, sources: Iterable[SourceWithOptions], recordings: deque[Recording], stopped: Event
    ) -> Iterator[_Buffer]:
        """Read recordings, append them to `recordings`, and yield their chunks whenever enough are held."""
        buffer = _Buffer(min(FIRST_BUFFER_SECONDS, BUFFER_SECONDS))
        for given in sources:
            if stopped.is_set():
                return
            path = path_of(given.source)
            name = given.source.name if isinstance(given.source, BlockSource | ChunkSource) else str(path or "array")
            recording = Recording(path, name, given.language, given.channel)
            recordings.append(recording)
            for chunk in self._chunks(given, recording, stopped):
                if chunk.is_gap:
                    buffer.skipped += len(chunk.samples)
                    continue
                if self._is_enough(buffer):  # here, since errors may show only after the last chunk
                    yield buffer
                    buffer = buffer.following()
                buffer.chunks.append((recording, recording.chunks, chunk))
                recording.chunks += 1
            if not buffer.chunks or self._is_enough(buffer):
                yield buffer
                buffer = buffer.following()
        yield buffer

    def _is_enough(self, buffer: _Buffer) -> bool:
        """Whether it has the seconds that are wanted, and once these are the usual ones, chunks for a batch."""
        if sum(len(chunk.samples) for _, _, chunk in buffer.chunks) < buffer.wanted * self.sampling_rate:
            return False
        return buffer.wanted < BUFFER_SECONDS or len(buffer.chunks) >= self.batch_size

    def _chunks(self, given: SourceWithOptions, recording: Recording, stopped: Event) -> Iterator[Chunk]:
        """The chunks of a recording as they are read; an error ends them."""
        try:
            if isinstance(given.source, ChunkSource):
                yield from self._cut_chunks(given.source, recording, stopped)
            else:
                yield from self.cut(self._blocks(given, recording, stopped))
            check_long_enough(recording.samples, self.sampling_rate, recording.name)
        except AudioError as error:
            recording.error = error
        recording.is_read = True

    def _blocks(self, given: SourceWithOptions, recording: Recording, stopped: Event) -> Iterator[NDArray[np.float32]]:
        """Read a recording block by block, until cancelled, and count its samples."""
        note = recording.notes.append
        with recording.reading():
            for block in source_blocks(given.source, self.sampling_rate, given.sampling_rate, given.channel, note):
                if stopped.is_set():
                    return
                recording.samples += len(block)
                yield block

    def _cut_chunks(self, source: ChunkSource, recording: Recording, stopped: Event) -> Iterator[Chunk]:
        """Read the chunks of a recording that arrives cut, until cancelled, and count its samples."""
        with recording.reading():
            for samples, chunk in source.read(recording.notes.append):
                recording.samples = samples
                if stopped.is_set():
                    return
                if chunk is not None:
                    yield chunk


class Transcriber(RecordingTranscriber):
    """A loaded model with everything needed to transcribe.

    Args:
        loaded: from `load_model`, or from `load_encoder_alone` to transcribe with the encoder's CTC head only.
        batch_size: chunks the model reads at once.
        decoding: settings of the decoder, guards and times; default, the decoder that the checkpoint names.
        language: spoken in the recordings, as a code such as `de` or a name, for models whose prompt names it.

    Raises:
        ConfigError: the model does not support these settings.
    """

    def __init__(
        self,
        loaded: LoadedModel | LoadedEncoder,
        batch_size: int = 8,
        decoding: DecodingConfig | None = None,
        language: str | None = None,
    ) -> None:
        self.recognizer = Recognizer(loaded, decoding or DecodingConfig())
        speech_encoder = self.recognizer.speech_encoder
        longest = loaded.model.config.max_audio_seconds if isinstance(loaded, LoadedModel) else LONGEST_SECONDS
        super().__init__(
            speech_encoder.sampling_rate,
            min(longest + ROUNDING_SECONDS, speech_encoder.max_seconds),
            batch_size,
            language,
            self.recognizer.config.cut_at_pauses,
        )
        self.parallel = batches_at_a_time(speech_encoder.device)
        self.unsure_below = speech_encoder.unsure_below

    @property
    def loaded(self) -> LoadedModel:
        """The whole model.

        Raises:
            ValueError: only an encoder was loaded.
        """
        if isinstance(self.recognizer.loaded, LoadedEncoder):
            raise ValueError("there is no whole model: only its encoder was loaded")
        return self.recognizer.loaded

    def recognize_chunks(
        self,
        chunks: Sequence[Chunk],
        languages: Sequence[str | None] | None = None,
        hotwords: Sequence[Sequence[str]] | None = None,
    ) -> list[Recognition]:
        """See `RecordingTranscriber`; `hotwords` are those of each chunk, by default those of the configuration."""
        return call_fork_safe(
            self.recognizer.recognize,
            [normalize_level(chunk.samples) for chunk in chunks],
            _has_voice,
            languages or [self.language] * len(chunks),
            # Overlaps are joined by the times of their words; of a whole recording these are the cheapest bounds.
            timed=[bool(chunk.overlap_before or chunk.overlap_after or chunk.is_uncut) for chunk in chunks],
            hotwords=hotwords,
        )


def load(
    model: str | Path | None = None,
    device: str | None = None,
    decoding: DecodingConfig | None = None,
    batch_size: int = 8,
    quantization: Quantization = "none",
    language: str | None = None,
    dtype: LoadDtype = "fp32",
    compile: bool = False,
) -> Transcriber:
    """Load a model for transcription; for `--decoder ctc`, or of a CTC head's folder, its encoder alone.

    Args:
        model: checkpoint folder, hub id, or bundled name; default, the bundled `english`. For the decoder
            `ctc` also a bare encoder, such as published Granite Speech.
        device: `cpu`, `cuda`, `mps`; default, an accelerator if there is one.
        decoding: settings of the decoder, guards and times.
        batch_size: chunks the model reads at once.
        quantization: as in `asr_doge.models.load_model`.
        language: as in `Transcriber`.
        dtype: of the weights in memory, and of the computation; `auto` is the fastest of this machine, which on a CPU
            may be `int8`.
        compile: the encoder's conformer blocks, as in `asr_doge.models.compiling`.

    Raises:
        CheckpointError, ConfigError: as in `asr_doge.models.load_model`, in `asr_doge.models.compiling`, and in
            `Transcriber`.
    """
    loaded = load_model_or_encoder(model, device, decoding, quantization, dtype, compile)
    return Transcriber(loaded, batch_size, decoding, language)


@overload
def transcribe(  # type: ignore[overload-overlap]  # a recording may be iterable
    source: Source | Sequence[float],
    model: str | Path | None = None,
    device: str | None = None,
    decoding: DecodingConfig | None = None,
    language: str | None = None,
    sampling_rate: float | None = None,
) -> Transcription: ...


@overload
def transcribe(
    source: Iterable[Source],
    model: str | Path | None = None,
    device: str | None = None,
    decoding: DecodingConfig | None = None,
    language: str | None = None,
    sampling_rate: float | None = None,
) -> list[Transcription]: ...


def transcribe(
    source: Source | Sequence[float] | Iterable[Source],
    model: str | Path | None = None,
    device: str | None = None,
    decoding: DecodingConfig | None = None,
    language: str | None = None,
    sampling_rate: float | None = None,
) -> Transcription | list[Transcription]:
    """Load a model and transcribe with it; for more than one call, keep the `Transcriber` that `load` gives.

    Args:
        source, sampling_rate: as in `Transcriber.transcribe`.
        model, device, decoding, language: as in `load`.

    Raises:
        AudioError: a recording cannot be read.
        CheckpointError, ConfigError: the model cannot be loaded.
    """
    return load(model, device, decoding, language=language).transcribe(source, sampling_rate)


def _has_voice(clip: NDArray[np.float32]) -> bool:
    """Whether there is speech in a clip, whatever hum there is."""
    return has_voice(without_rumble(clip))
