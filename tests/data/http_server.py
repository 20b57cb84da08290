"""A server on loopback that misbehaves as it is told, for one file."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Behaviour:
    """What the server does with each request; requests are counted from 0."""

    content: bytes
    supports_ranges: bool = True
    drop_after: int | None = None
    """Bytes after which a connection is closed, whatever was promised."""
    stall_requests: int = 0
    """Number of first requests whose body stops half way, with the connection left open."""
    claimed_extra: int = 0
    """Added to the length in the headers."""
    status: int | None = None
    """Answer everything with this error."""
    ranges_asked: list[str | None] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def requests(self) -> int:
        return len(self.ranges_asked)


@contextmanager
def serve(behaviour: Behaviour) -> Iterator[str]:
    """Yields the address of the folder that all paths are in."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            number = behaviour.requests
            wanted = self.headers.get("Range")
            behaviour.ranges_asked.append(wanted)
            if behaviour.status is not None:
                self.send_error(behaviour.status)
                return
            total = len(behaviour.content) + behaviour.claimed_extra
            start = int(re.findall(r"\d+", wanted)[0]) if wanted and behaviour.supports_ranges else 0
            if start >= len(behaviour.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{total}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            self.send_header("Content-Length", str(total - start))
            self.end_headers()
            body = behaviour.content[start:]
            if number < behaviour.stall_requests:
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                behaviour.released.wait(20)
                return
            self.wfile.write(body[: behaviour.drop_after])

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/files"
    finally:
        behaviour.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
