"""The server's metrics for Prometheus.

Promises: one registry a server, so that several in one process (as in tests) do not mix; no texts, names or addresses.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("asr_doge_requests", "Requests answered", ["route", "status"], registry=registry)
        self.request_seconds = Histogram(
            "asr_doge_request_seconds", "From request to answer", ["route"], buckets=_SECONDS, registry=registry
        )
        self.running = Gauge("asr_doge_requests_running", "Files received, waiting or transcribed", registry=registry)
        self.sessions = Gauge("asr_doge_sessions", "Live sessions", registry=registry)
        self.refused = Counter("asr_doge_refused", "Requests and sessions turned away", ["reason"], registry=registry)
        self.audio_seconds = Counter(
            "asr_doge_audio_seconds", "Audio recognized, hypotheses included", registry=registry
        )
        self.model_seconds = Counter("asr_doge_model_seconds", "Time that the model ran", registry=registry)
        self.batch_size = Histogram(
            "asr_doge_batch_chunks", "Chunks in one pass", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self.queue_seconds = Histogram(
            "asr_doge_queue_seconds", "Time that a chunk waited for the model", buckets=_SECONDS, registry=registry
        )
        self.final_seconds = Histogram(
            "asr_doge_final_seconds", "From the end of a turn to its text", buckets=_SECONDS, registry=registry
        )
        self.model_loaded = Gauge("asr_doge_model_loaded", "Whether the model is in memory", registry=registry)

    def batch(self, chunks: int, audio: float, seconds: float) -> None:
        """One pass of the model over so many chunks and seconds of audio."""
        self.batch_size.observe(chunks)
        self.audio_seconds.inc(audio)
        self.model_seconds.inc(seconds)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)
