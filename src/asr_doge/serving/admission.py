"""Admission control: limits of concurrent files and live sessions.

Promises: a request beyond the limit is refused at once, before it is read, with a time after which to retry. Everything
here runs on the event loop, so it needs no locks.
"""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Gauge

from asr_doge.serving.errors import APIError
from asr_doge.serving.metrics import Metrics

LONGEST_WAIT = 120
"""Longest `Retry-After` in seconds; OpenAI's clients wait no longer."""


class Admission:
    """Counts requests and sessions.

    Args:
        max_requests: files at a time.
        max_sessions: live sessions at a time.
        metrics: counts what is admitted and refused.
    """

    def __init__(self, max_requests: int, max_sessions: int, metrics: Metrics) -> None:
        self._most = {"request": max_requests, "session": max_sessions}
        self._held = {"request": 0, "session": 0}
        self._took: deque[float] = deque([1.0], maxlen=20)
        self._metrics = metrics
        self.is_draining = False

    @contextmanager
    def request(self) -> Iterator[None]:
        """Admit a file.

        Raises:
            APIError: 429, 503.
        """
        began = time.monotonic()
        with self._admit("request", self._metrics.running):
            yield
        self._took.append(time.monotonic() - began)

    @contextmanager
    def session(self) -> Iterator[None]:
        """Admit a live session.

        Raises:
            APIError: 429, 503.
        """
        with self._admit("session", self._metrics.sessions):
            yield

    @property
    def is_full(self) -> bool:
        """Whether the next file would be refused."""
        return self._held["request"] >= self._most["request"]

    @property
    def sessions(self) -> int:
        """Live sessions now."""
        return self._held["session"]

    @contextmanager
    def _admit(self, kind: str, gauge: Gauge) -> Iterator[None]:
        if self.is_draining:
            self._metrics.refused.labels("draining").inc()
            raise APIError(
                503, "the server is shutting down: try again in a moment", code="shutting_down", retry_after=5
            )
        if self._held[kind] >= self._most[kind]:
            self._metrics.refused.labels(kind).inc()
            wait = min(max(round(sum(self._took) / len(self._took)), 1), LONGEST_WAIT)
            message = f"the server is busy with {self._most[kind]} {kind}s: try again in {wait} s"
            raise APIError(429, message, code="busy", retry_after=wait)
        self._held[kind] += 1
        gauge.inc()
        try:
            yield
        finally:
            self._held[kind] -= 1
            gauge.dec()
