"""The server's model, and the threads that run it for all requests and live sessions.

Promises: chunks of files and streams that come within a few milliseconds are recognized in one pass, with others of
similar length; live speech that has ended goes before all that waits, and no file waits for ever; a chunk that breaks
the model costs its own request only; the chunks of a cancelled request leave the queue. Results do not depend on who
else is in the batch, as the recognizer promises. The model is unloaded after a time without work and loaded again
when needed.
On a CPU two threads run the model, each with half of the cores: batches save little there, and the threads of one pass
wait for each other, for very long where other programs run. It does not know files or HTTP, and of sessions only that
some are open.
"""

import gc
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch

from asr_doge.decoding.recognition import Recognition
from asr_doge.inference.batches import batches_at_a_time
from asr_doge.inference.chunking import Chunk
from asr_doge.inference.model_threads import start_model_threads
from asr_doge.inference.transcription import RecordingTranscriber, Transcriber
from asr_doge.serving.batching import Kind, PendingChunk, choose_batch
from asr_doge.serving.metrics import Metrics

MOST_CHUNKS, MOST_CHUNKS_CPU, MOST_CHUNKS_LIVE = 64, 8, 4
"""Chunks in one batch on an accelerator, on a CPU, and on a CPU while a live session is open, whose next turn may have
to wait for the batch. On a CPU larger batches save little, and all their chunks wait for the slowest."""
FILE_BATCH = 8
"""Chunks that one file may have in the queue."""
LIVE_SECONDS = 2.0
"""Seconds after a live chunk for which one of several threads is kept for speech that ends."""


@dataclass(frozen=True)
class ModelFacts:
    """Properties of the model that are known though it may be unloaded.

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


class ModelWorker:
    """Runs the model.

    Args:
        name: of the model.
        load: loads it.
        metrics: counts batches and seconds.
        batch_seconds: audio in one batch, padding included.
        wait: seconds to wait for others to join a batch.
        keep_alive: seconds without work after which the model is unloaded; None for never.
        threads: threads that run the model; default, as many as suit its device.

    Attributes:
        transcribers: those that are not cancelled.

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
        threads: int | None = None,
    ) -> None:
        self._load, self._metrics = load, metrics
        self._batch_seconds, self._wait, self._keep_alive = batch_seconds, wait, keep_alive
        self._transcriber: Transcriber | None = load()
        self._loading = threading.Lock()
        self.facts = _facts(name, self._transcriber)
        metrics.model_loaded.set(1)
        self.transcribers: set[WorkerTranscriber] = set()
        self._queue: list[PendingChunk] = []
        self._at_work = {True: 0, False: 0}  # threads, with a batch that is urgent or not
        self._live_until, self._sessions = 0.0, 0
        self._changed = threading.Condition()
        self._closed = False
        device = self._transcriber.recognizer.speech_encoder.device
        self._is_parallel = device.type == "cpu"
        self._threads: list[threading.Thread] = []
        self._threads = start_model_threads(threads or batches_at_a_time(device), self._run, self._stop, "model")

    @property
    def is_loaded(self) -> bool:
        """Whether the model is in memory now."""
        return self._transcriber is not None

    @property
    def waiting(self) -> int:
        """Number of chunks in the queue that are not cancelled."""
        with self._changed:
            return sum(not pending.result.done() for pending in self._queue)

    @contextmanager
    def session(self) -> Iterator[None]:
        """Count a live session as open, whether or not anybody speaks."""
        with self._changed:
            self._sessions += 1
        try:
            yield
        finally:
            with self._changed:
                self._sessions -= 1

    def submit(
        self,
        chunks: Sequence[Chunk],
        languages: Sequence[str | None],
        hotwords: tuple[str, ...] | None,
        kind: Kind,
    ) -> "list[Future[Recognition]]":
        """Queue chunks; a future that is cancelled takes its chunk out again."""
        new = [PendingChunk(chunk, language, hotwords, kind) for chunk, language in zip(chunks, languages, strict=True)]
        with self._changed:
            if self._closed:
                raise RuntimeError("the server is shutting down")
            if kind != "file":
                self._live_until = time.monotonic() + LIVE_SECONDS
            self._queue += new
            self._changed.notify_all()
        return [pending.result for pending in new]

    def close(self) -> None:
        """Finish the running batches, cancel pending chunks, and end the threads."""
        self._stop()
        for thread in self._threads:
            thread.join()
        for pending in self._queue:
            pending.result.cancel()

    def _stop(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while batch := self._next_batch():
            self._metrics.queue_seconds.observe(time.monotonic() - batch[0].arrived)
            self._recognize(batch)
            with self._changed:
                self._at_work[batch[0].is_urgent] -= 1
                self._changed.notify_all()

    def _next_batch(self) -> list[PendingChunk]:
        """Wait for a batch; empty once the worker is closed."""
        with self._changed:
            while not self._closed:
                self._queue = [pending for pending in self._queue if not pending.result.cancelled()]
                allowed = self._allowed()
                if not allowed:
                    if not self._changed.wait(self._idle_timeout()) and not self._is_busy:
                        self._unload()
                elif (left := min(pending.arrived for pending in allowed) + self._time_to_join - time.monotonic()) > 0:
                    self._changed.wait(left)
                else:
                    most = min(math.ceil(len(allowed) / self._free_threads(allowed[0].is_urgent)), self._most_chunks())
                    batch = choose_batch(allowed, self._batch_seconds, most)
                    self._at_work[batch[0].is_urgent] += 1
                    chosen = set(map(id, batch))
                    self._queue = [pending for pending in self._queue if id(pending) not in chosen]
                    return batch
            return []

    @property
    def _is_busy(self) -> bool:
        return bool(self._queue) or any(self._at_work.values())

    @property
    def _time_to_join(self) -> float:
        """Seconds that a chunk waits for others; the only request sends its chunks together, so they do not wait."""
        return self._wait if len(self.transcribers) != 1 else 0.0

    @property
    def _is_live(self) -> bool:
        return time.monotonic() < self._live_until

    def _most_chunks(self) -> int:
        if not self._is_parallel:
            return MOST_CHUNKS
        return MOST_CHUNKS_LIVE if self._sessions else MOST_CHUNKS_CPU

    def _idle_timeout(self) -> float | None:
        """Seconds to wait if no chunk may start: until the model is unloaded, or no thread is kept for live speech."""
        limits = [self._keep_alive] if self.is_loaded and self._keep_alive is not None else []
        limits += [max(self._live_until - time.monotonic(), 0.0)] if self._queue else []
        return min(limits, default=None)

    def _free_threads(self, is_urgent: bool) -> int:
        """Threads that are free for urgent work, or for other work: one thread is kept for live speech that ends."""
        free = len(self._threads) - sum(self._at_work.values())
        is_kept = len(self._threads) > 1 and self._is_live
        return min(free, len(self._threads) - 1 - self._at_work[False]) if is_kept and not is_urgent else free

    def _allowed(self) -> list[PendingChunk]:
        """The pending chunks that may start now, in one batch, the most urgent first."""
        may_begin = self._free_threads(is_urgent=False) > 0
        allowed = sorted(
            (pending for pending in self._queue if pending.is_urgent or may_begin), key=lambda pending: pending.due
        )
        return [pending for pending in allowed if pending.is_urgent == allowed[0].is_urgent]

    def _recognize(self, batch: list[PendingChunk]) -> None:
        began = time.monotonic()
        try:
            recognitions = self.loaded().recognize_chunks(
                [pending.chunk for pending in batch], [pending.language for pending in batch], self._hotwords(batch)
            )
        except Exception as error:
            if len(batch) == 1:
                with suppress(InvalidStateError):
                    batch[0].result.set_exception(error)
                return
            for pending in batch:
                self._recognize([pending])
            return
        self._metrics.batch(len(batch), sum(pending.seconds for pending in batch), time.monotonic() - began)
        for pending, recognition in zip(batch, recognitions, strict=True):
            with suppress(InvalidStateError):  # cancelled meanwhile
                pending.result.set_result(recognition)

    def _hotwords(self, batch: Sequence[PendingChunk]) -> list[Sequence[str]]:
        own = self.loaded().recognizer.hotwords
        return [own if pending.hotwords is None else pending.hotwords for pending in batch]

    def loaded(self) -> Transcriber:
        """The model, loaded again if necessary; for the worker's own threads."""
        with self._loading:
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


class WorkerTranscriber(RecordingTranscriber):
    """A transcriber for one request or one item of a session, which queues its chunks for the worker.

    Args:
        worker: recognizes the chunks.
        language: the spoken language; None if unknown.
        hotwords: words to listen for; None for the server's own.
        kind: of the chunks that it passes to `recognize_chunks`.
    """

    def __init__(
        self,
        worker: ModelWorker,
        language: str | None = None,
        hotwords: tuple[str, ...] | None = None,
        kind: Kind = "file",
    ) -> None:
        facts = worker.facts
        super().__init__(facts.sampling_rate, facts.max_seconds, FILE_BATCH, language, facts.cut_at_pauses)
        self.hotwords = hotwords
        self.cancelled, self._is_over = threading.Event(), threading.Event()
        self._worker, self._kind = worker, kind
        self._waiting: list[Future[Recognition]] = []
        self._hypothesis: Future[Recognition] | None = None
        worker.transcribers.add(self)

    def recognize_chunks(
        self, chunks: Sequence[Chunk], languages: Sequence[str | None] | None = None
    ) -> list[Recognition]:
        """See `RecordingTranscriber.recognize_chunks`.

        Raises:
            CancelledError: the transcriber was cancelled.
        """
        spoken = languages or [self.language] * len(chunks)
        waiting = self._waiting = self._worker.submit(chunks, spoken, self.hotwords, self._kind)
        if self.cancelled.is_set():
            self.cancel()
        return [future.result() for future in waiting]

    def recognize_open(self, chunk: Chunk) -> Recognition | None:
        """See `RecordingTranscriber.recognize_open`; None once the speech is over.

        Raises:
            CancelledError: the transcriber was cancelled.
        """
        (self._hypothesis,) = self._worker.submit([chunk], [self.language], self.hotwords, "open")
        if self._is_over.is_set():
            self._hypothesis.cancel()
        try:
            return self._hypothesis.result()
        except CancelledError:
            if self.cancelled.is_set():
                raise
            return None

    def end_speech(self) -> None:
        """Note that the speech is over: hypotheses of it that are still waiting are cancelled."""
        self._is_over.set()
        if self._hypothesis is not None:
            self._hypothesis.cancel()

    def cancel(self) -> None:
        """Take pending chunks out of the queue; later calls raise a CancelledError."""
        self.cancelled.set()
        self._worker.transcribers.discard(self)
        self.end_speech()
        for future in self._waiting:
            future.cancel()
