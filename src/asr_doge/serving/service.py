"""The components that all routes of one server share: model, decoder, limits, threads.

Promises: they are made before the first request and closed after the last; none is global.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from asr_doge.inference.transcription import Transcriber, load
from asr_doge.serving.access import Access
from asr_doge.serving.admission import Admission
from asr_doge.serving.chunk_decoding import ChunkDecoder
from asr_doge.serving.configuration import ServeConfig
from asr_doge.serving.metrics import Metrics
from asr_doge.serving.worker import ModelWorker

LISTENING_THREADS = 2
"""Threads that detect the turns of all sessions; a session takes 3 % of a core."""


class Service:
    """The components of one server.

    Args:
        config: checked.

    Raises:
        ASRDogeError: the model cannot be loaded.
    """

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self.metrics = Metrics()
        self.access = Access(config.api_key, config.allowed_origins, config.host)
        self.admission = Admission(config.max_requests, config.max_sessions, self.metrics)
        self.worker = ModelWorker(
            config.model, self._load, self.metrics, config.batch_seconds, config.batch_wait_ms / 1000, config.keep_alive
        )
        self.models = (config.model, *config.aliases)
        longest = self.worker.facts.max_seconds
        self.decoder = ChunkDecoder(longest, config.decode_memory_mb * 1_000_000, config.max_duration)
        self.files = ThreadPoolExecutor(config.max_requests, thread_name_prefix="file")
        self.listening = ThreadPoolExecutor(LISTENING_THREADS, thread_name_prefix="listening")
        self.live = ThreadPoolExecutor(config.max_sessions, thread_name_prefix="live")
        self.stopping = asyncio.Event()

    @property
    def most_bytes(self) -> int:
        """Largest upload, in bytes."""
        return round(self.config.max_upload_mb * 1_000_000)

    def close(self) -> None:
        """End the threads and the fork server; requests that still wait are cancelled."""
        for transcriber in list(self.worker.transcribers):
            transcriber.cancel()
        self.worker.close()
        for pool in (self.files, self.listening, self.live):
            pool.shutdown(wait=True, cancel_futures=True)
        self.decoder.close()

    def _load(self) -> Transcriber:
        config = self.config
        return load(
            config.model,
            config.device,
            config,
            quantization=config.quantization,
            language=config.language,
            dtype=config.dtype,
            compile=config.compile,
        )
