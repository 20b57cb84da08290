"""Run the server: listen, serve, and shut down gracefully.

Promises: a connection that sends no request, or reads nothing of its reply, is closed; at the first Ctrl-C or SIGTERM
new work is refused, running requests are finished and live sessions are transcribed to their end; clients get replies
only, and the log at most one line per request.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from asr_doge.serving.app import create_app
from asr_doge.serving.configuration import ServeConfig
from asr_doge.serving.service import Service

HEADER_SECONDS = 20.0
"""Seconds for the headers of the first request of a connection; for those of a next one after `KEEP_ALIVE_SECONDS`."""
ACKNOWLEDGE_SECONDS = 60.0
"""Seconds without acknowledgement of a reply after which its connection is closed, where the system can (Linux)."""
KEEP_ALIVE_SECONDS = 30
GRACE_SECONDS = 60
"""Seconds that requests may take after the server was told to stop."""
MESSAGE_BYTES = 16 << 20
"""Largest message of a WebSocket; OpenAI's allows 15 MiB of audio in one."""
SPARE_CONNECTIONS = 100
"""Connections for probes and pages, in addition to those of requests and sessions."""


class Server(uvicorn.Server):
    """Uvicorn, which first lets live sessions write what was said."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self.on_ready: Callable[[str], None] = lambda address: None

    @property
    def port(self) -> int:
        """The port, once the server listens."""
        port: int = self.servers[0].sockets[0].getsockname()[1]
        return port

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        if self.started and not self.should_exit:
            self.on_ready(f"http://{self.config.host}:{self.port}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop in good order."""
        self.service.admission.is_draining = True
        self.service.stopping.set()
        while self.service.admission.sessions:
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)


class TimeoutProtocol(H11Protocol):
    """HTTP/1.1 with timeouts: for idle connections, for slow headers, and for replies that the client does not read."""

    _timeout: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Wait for the first request."""
        super().connection_made(transport)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            descriptor = transport.get_extra_info("socket").fileno()  # uvloop's object lacks `setsockopt`
            with socket.fromfd(descriptor, socket.AF_INET, socket.SOCK_STREAM) as same:
                same.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * ACKNOWLEDGE_SECONDS))
        self._timeout = self.loop.call_later(HEADER_SECONDS, self._hang_up)

    def on_response_complete(self) -> None:
        """Wait for the next request, in which uvicorn has no time limit once its first byte has come."""
        super().on_response_complete()
        if self._timeout is not None:
            self._timeout.cancel()
        self._timeout = self.loop.call_later(KEEP_ALIVE_SECONDS + HEADER_SECONDS, self._hang_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        if self._timeout is not None:
            self._timeout.cancel()
        super().connection_lost(exc)

    def _hang_up(self) -> None:
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if not is_answering and self.transport.get_protocol() is self:  # else it has become a WebSocket
            self.transport.close()


def create_server(config: ServeConfig) -> Server:
    """A server that has its model and is ready to run.

    Raises:
        ASRDogeError: the model cannot be loaded.
    """
    service = Service(config)
    settings: dict[str, Any] = {
        "host": config.host,
        "port": config.port,
        "http": TimeoutProtocol,
        "ws": "websockets-sansio",
        "ws_max_size": MESSAGE_BYTES,
        "ws_per_message_deflate": False,  # base64 of sound hardly shrinks
        "timeout_keep_alive": KEEP_ALIVE_SECONDS,
        "timeout_graceful_shutdown": GRACE_SECONDS,
        "limit_concurrency": config.max_requests + config.max_sessions + SPARE_CONNECTIONS,
        "access_log": False,
        "log_level": "warning",
        "server_header": False,
    }
    return Server(uvicorn.Config(create_app(service), **settings), service)


def run(config: ServeConfig, on_ready: Callable[[str], None]) -> None:
    """Serve until told to stop.

    Args:
        config: checked.
        on_ready: called with the address once connections are taken.

    Raises:
        ASRDogeError: the model cannot be loaded.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    server = create_server(config)
    server.on_ready = on_ready
    server.run()
