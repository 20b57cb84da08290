"""Errors that are sent to clients: an HTTP status and OpenAI's JSON.

Promises: messages hold no paths of the server and no traceback.
"""

from typing import Any


class APIError(Exception):
    """A request that is refused or failed.

    Args:
        status: of HTTP.
        message: one line, what is wrong and what to do.
        param: the field at fault.
        code: for programs.
        retry_after: seconds after which to try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, Any]:
        """The error as OpenAI's clients parse it."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    @property
    def type(self) -> str:
        """OpenAI's kind of error."""
        if self.status == 401:
            return "authentication_error"
        if self.status == 403:
            return "permission_error"
        if self.status == 429:
            return "rate_limit_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to it."""
        headers = {"Retry-After": str(self.retry_after)} if self.retry_after is not None else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers


def failure(request_id: str) -> APIError:
    """The error for a defect of the server."""
    return APIError(500, f"the server failed; its log has the reason under {request_id}", code="server_error")
