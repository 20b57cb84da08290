"""The one instance of the model, and the thread that runs it for all callers.

Promises: chunks of files and streams that come within a few milliseconds are recognized in one pass, with others of
like length, live ones first and no file waiting for ever; a chunk that breaks the model costs its own caller only; a
caller that leaves takes its chunks out of the queue. Results do not depend on who else is in the batch, as the
recognizer promises. The model is given back after a time without work and loaded again when needed.
It does not know files, sessions or HTTP.
"""

import gc
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from asr_doge.audio.resampling import SAMPLE_RATE
from asr_doge.decoding.recognition import Recognition
from asr_doge.inference.segmentation import Chunk
from asr_doge.inference.transcription import RecordingTranscriber, Transcriber
from asr_doge.serving.metrics import Metrics

LIKE_LENGTH = 2.0
"""Chunks in one batch differ in length by this factor at most, or are all shorter than `SHORT_SECONDS`."""
SHORT_SECONDS = 2.0
MOST_CHUNKS = 64
"""Chunks in one batch."""
FILE_BATCH = 8
"""Chunks that one file may have in the queue."""
LIVE_PATIENCE, FILE_PATIENCE = 0.0, 1.0
"""Seconds by which a chunk may wait for others that came later."""


@dataclass(frozen=True)
class ModelFacts:
    """What callers need to know of the model, loaded or not.

    Attributes:
        name: as the user gave it.
        sampling_rate: of its waveforms, in Hz.
        max_seconds: longest chunk that it reads.
        cut_at_pauses: whether it cuts recordings that it could read whole.
        has_word_times: whether its encoder has a CTC head, for word times and hotwords.
        reads_language: whether its prompt names the language.
        token_ids: of a text, by its tokenizer.
    """

    name: str
    sampling_rate: int
    max_seconds: float
    cut_at_pauses: bool
    has_word_times: bool
    reads_language: bool
    token_ids: Callable[[str], list[int]]


@dataclass(eq=False)
class _Job:
    """A chunk in the queue."""

    chunk: Chunk
    language: str | None
    hotwords: tuple[str, ...] | None
    due: float
    came: float
    result: "Future[Recognition]" = field(default_factory=Future)

    @property
    def seconds(self) -> float:
        return len(self.chunk.samples) / SAMPLE_RATE


class ModelWorker:
    """Runs the model.

    Args:
        name: of the model.
        load: loads it.
        batch_seconds: audio in one batch, padding included.
        wait: seconds to wait for others to join a batch.
        keep_alive: seconds without work after which the model is given back; None for never.
        metrics: told what is done.

    Raises:
        ASRDogeError: the model cannot be loaded.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], Transcriber],
        metrics: Metrics,
        batch_seconds: float = 60.0,
        wait: float = 0.01,
        keep_alive: float | None = None,
    ) -> None:
        self._load, self._metrics = load, metrics
        self._batch_seconds, self._wait, self._keep_alive = batch_seconds, wait, keep_alive
        self._transcriber: Transcriber | None = load()
        self.facts = _facts(name, self._transcriber)
        metrics.model_loaded.set(1)
        self._jobs: list[_Job] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def is_loaded(self) -> bool:
        """Whether the model is in memory now."""
        return self._transcriber is not None

    @property
    def waiting(self) -> int:
        """Chunks in the queue that somebody still wants."""
        with self._changed:
            return sum(not job.result.done() for job in self._jobs)

    def submit(
        self,
        chunks: Sequence[Chunk],
        languages: Sequence[str | None],
        hotwords: tuple[str, ...] | None,
        patience: float,
    ) -> "list[Future[Recognition]]":
        """Queue chunks; a future that is cancelled takes its chunk out again."""
        now = time.monotonic()
        jobs = [
            _Job(chunk, language, hotwords, now + patience, now)
            for chunk, language in zip(chunks, languages, strict=True)
        ]
        with self._changed:
            if self._closed:
                raise RuntimeError("the server is shutting down")
            self._jobs += jobs
            self._changed.notify_all()
        return [job.result for job in jobs]

    def close(self) -> None:
        """Finish the batch at work, fail what waits, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        for job in self._jobs:
            job.result.cancel()

    def _run(self) -> None:
        while batch := self._next_batch():
            self._metrics.queue_seconds.observe(time.monotonic() - batch[0].came)
            self._recognize([job for job in batch if job.result.set_running_or_notify_cancel()])

    def _next_batch(self) -> list[_Job]:
        """Wait for work; nothing once closed."""
        with self._changed:
            while not self._closed:
                self._jobs = [job for job in self._jobs if not job.result.cancelled()]
                if not self._jobs:
                    if not self._changed.wait(self._keep_alive if self._transcriber is not None else None):
                        self._unload()
                elif (left := self._jobs[0].came + self._wait - time.monotonic()) > 0:
                    self._changed.wait(left)
                else:
                    batch = _alike(sorted(self._jobs, key=lambda job: job.due), self._batch_seconds)
                    chosen = set(map(id, batch))
                    self._jobs = [job for job in self._jobs if id(job) not in chosen]
                    return batch
            return []

    def _recognize(self, batch: list[_Job]) -> None:
        if not batch:
            return
        began = time.monotonic()
        try:
            recognitions = self.loaded().recognize_chunks(
                [job.chunk for job in batch], [job.language for job in batch], self._hotwords(batch)
            )
        except Exception as error:
            if len(batch) == 1:
                batch[0].result.set_exception(error)
                return
            for job in batch:
                self._recognize([job])
            return
        self._metrics.batch(len(batch), sum(job.seconds for job in batch), time.monotonic() - began)
        for job, recognition in zip(batch, recognitions, strict=True):
            job.result.set_result(recognition)

    def _hotwords(self, batch: Sequence[_Job]) -> list[Sequence[str]]:
        own = self.loaded().recognizer.hotwords
        return [own if job.hotwords is None else job.hotwords for job in batch]

    def loaded(self) -> Transcriber:
        """The model, loaded if it is not; for the worker's own thread."""
        if self._transcriber is None:
            self._transcriber = self._load()
            self._metrics.model_loaded.set(1)
        return self._transcriber

    def _unload(self) -> None:
        self._transcriber = None
        self._metrics.model_loaded.set(0)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _alike(jobs: Sequence[_Job], batch_seconds: float) -> list[_Job]:
    """The first job, and those after it that are of like length, as many as fit."""
    first, *others = jobs
    batch, longest, shortest = [first], first.seconds, first.seconds
    for job in others:
        high, low = max(longest, job.seconds), min(shortest, job.seconds)
        is_alike = high <= max(SHORT_SECONDS, LIKE_LENGTH * low)
        if is_alike and len(batch) < MOST_CHUNKS and high * (len(batch) + 1) <= batch_seconds:
            batch.append(job)
            longest, shortest = high, low
    return batch


def _facts(name: str, transcriber: Transcriber) -> ModelFacts:
    recognizer = transcriber.recognizer
    processor = getattr(recognizer.loaded, "processor", None)  # an encoder alone has none
    tokenizer = processor.tokenizer if processor is not None else None

    def token_ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids) if tokenizer is not None else []

    return ModelFacts(
        name,
        transcriber.sampling_rate,
        transcriber.max_seconds,
        transcriber.cut_at_pauses,
        recognizer.encoder.has_ctc,
        recognizer.reads_language,
        token_ids,
    )


class Caller(RecordingTranscriber):
    """A transcriber for one request or session, whose model is the worker's.

    Args:
        worker: has the model.
        language: spoken; None where it is not known.
        hotwords: to listen for; None for the server's own.
        patience: seconds by which its chunks may wait for others that came later.
    """

    def __init__(
        self,
        worker: ModelWorker,
        language: str | None = None,
        hotwords: tuple[str, ...] | None = None,
        patience: float = FILE_PATIENCE,
    ) -> None:
        facts = worker.facts
        super().__init__(facts.sampling_rate, facts.max_seconds, FILE_BATCH, language, facts.cut_at_pauses)
        self.hotwords = hotwords
        self.has_left = threading.Event()
        self._worker, self._patience = worker, patience
        self._waiting: list[Future[Recognition]] = []
        self._lock = threading.Lock()

    def recognize_chunks(
        self, chunks: Sequence[Chunk], languages: Sequence[str | None] | None = None
    ) -> list[Recognition]:
        """As declared.

        Raises:
            CancelledError: the caller has left.
        """
        spoken = languages or [self.language] * len(chunks)
        with self._lock:
            waiting = self._worker.submit(chunks, spoken, self.hotwords, self._patience)
            self._waiting = waiting
        if self.has_left.is_set():
            self.leave()
        return [future.result() for future in waiting]

    def leave(self) -> None:
        """Want nothing any more: what waits is taken out of the queue."""
        self.has_left.set()
        with self._lock:
            for future in self._waiting:
                future.cancel()
