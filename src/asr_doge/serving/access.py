"""Access control: the API key, allowed origins, and host names.

Promises: keys are compared in constant time; a page of another web site cannot use a server unless its origin is
allowed, nor reach a server without a key by a host name of its own (DNS rebinding).
"""

import hmac
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from asr_doge.serving.configuration import is_loopback
from asr_doge.serving.errors import APIError

KEY_PROTOCOL = "openai-insecure-api-key."
"""How a browser, which cannot set headers, hands its key to a WebSocket: among the protocols it offers."""


class Access:
    """The rules of one server.

    Args:
        api_key: that clients must send; None for none.
        allowed_origins: web sites whose pages may use it; `*` for all.
        host: that it listens at.
    """

    def __init__(self, api_key: str | None, allowed_origins: Sequence[str], host: str) -> None:
        self._key = api_key.encode() if api_key is not None else None
        self._origins = frozenset(origin.rstrip("/").lower() for origin in allowed_origins)
        self._loopback_only = api_key is None and is_loopback(host)

    @property
    def needs_key(self) -> bool:
        """Whether clients must send a key."""
        return self._key is not None

    def check(self, connection: HTTPConnection) -> None:
        """Let a request or WebSocket pass.

        Raises:
            APIError: 401 without the key, 403 from another web site.
        """
        self.check_site(connection)
        if self._key is not None and not hmac.compare_digest(_key_of(connection), self._key):
            raise APIError(
                401, "this server needs its API key: send it as `Authorization: Bearer KEY`", code="invalid_api_key"
            )

    def check_site(self, connection: HTTPConnection) -> None:
        """Check host name and origin only, not the key.

        Raises:
            APIError: 403 from another web site.
        """
        host = connection.headers.get("host", "").lower()
        if self._loopback_only and not is_loopback(urlsplit(f"//{host}").hostname or "") and not self._knows(host):
            raise APIError(
                403,
                "this server has no key and answers to localhost only: give it a key, or --allowed_origins",
                code="host",
            )
        origin = connection.headers.get("origin")
        if origin is None or (origin == "null" and "*" in self._origins):
            return
        if urlsplit(origin).netloc.lower() != host and not self._allows(origin):
            raise APIError(
                403,
                f"pages of {origin[:100]} may not use this server: --allowed_origins names those that may",
                code="origin",
            )

    def _allows(self, origin: str) -> bool:
        return "*" in self._origins or origin.lower() in self._origins

    def _knows(self, host: str) -> bool:
        return "*" in self._origins or host in {urlsplit(origin).netloc for origin in self._origins}


def _key_of(connection: HTTPConnection) -> bytes:
    """The key in a request; empty if there is none."""
    scheme, _, key = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip().encode("utf-8", "replace")
    for protocol in connection.scope.get("subprotocols", ()):
        if protocol.startswith(KEY_PROTOCOL):
            return protocol.removeprefix(KEY_PROTOCOL).encode()
    return b""
