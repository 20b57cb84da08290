"""The application: all routes of a server, and the middleware around them.

Promises: every reply has a request id; every error has OpenAI's form, without traceback or path; a request without
access, or to a full server, is refused before it is read.
"""

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, FastAPI, Request, Security
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asr_doge.serving import page, realtime, transcriptions
from asr_doge.serving.errors import APIError, failure
from asr_doge.serving.service import Service
from asr_doge.serving.uploads import linger

_LOG = logging.getLogger("asr_doge")
CLIENT_LEFT = 499
"""Nginx's status for a client that disconnected; nobody reads this reply."""
OPEN_PATHS = frozenset(["/", "/healthz", "/readyz", "/docs", "/openapi.json"])
OPEN_FOLDERS = (page.PREFIX, "/docs-assets/")
"""Addresses that need no key: the page, which asks for the key, and probes, which have none."""

KEY = Security(HTTPBearer(auto_error=False, description="The server's key, if it has one."))
"""For the documentation page, which then can send it; `_Gate` is what checks it."""

health = APIRouter()
models = APIRouter(prefix="/v1/models")


def create_app(service: Service) -> FastAPI:
    """The application of a service, which it closes at its end."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPIOffline(
        title="ASR-Doge",
        description="Speech recognition as OpenAI's clients speak it; live audio is at `/v1/realtime` (WebSocket).",
        version=version("asr-doge"),
        lifespan=lifespan,
        redoc_url=None,
        static_url=OPEN_FOLDERS[1].rstrip("/"),
        favicon_url="data:,",
    )
    app.state.service = service
    for router in (models, transcriptions.router):
        app.include_router(router, dependencies=[KEY])
    for router in (health, realtime.router, page.router):
        app.include_router(router)
    app.add_exception_handler(APIError, _answer)
    app.add_exception_handler(HTTPException, _not_found)
    app.add_exception_handler(ClientDisconnect, _left)
    app.add_middleware(_Gate, service=service)
    if service.config.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.config.allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # OpenAI's JavaScript client sends some of its own
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    return app


class _Gate:
    """Middleware of every request: gives it an id, checks access, measures its time, and replies to errors."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})
        request = Request(scope, receive)
        request_id = f"req_{uuid4().hex[:20]}"
        request.state.request_id = request_id
        began, status = time.monotonic(), 0

        scope["state"]["is_read"] = not {b"content-length", b"transfer-encoding"} & {
            name for name, _ in scope["headers"]
        }

        async def receive_noting() -> Message:
            message = await receive()
            if message["type"] != "http.request" or not message.get("more_body", False):
                scope["state"]["is_read"] = True
            return message

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            if scope["path"] in OPEN_PATHS or scope["path"].startswith(OPEN_FOLDERS):
                self._service.access.check_site(request)
            else:
                self._service.access.check(request)
            await self._app(scope, receive_noting, send_with_id)
        except APIError as error:
            await _refuse(error, Request(scope, receive_noting), send_with_id)
        except Exception:
            _LOG.exception("request %s failed", request_id)
            if not status:
                await _reply(failure(request_id))(scope, receive, send_with_id)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self._service.metrics.requests.labels(route, str(status)).inc()
            self._service.metrics.request_seconds.labels(route).observe(time.monotonic() - began)


async def _refuse(error: APIError, request: Request, send: Send) -> None:
    """Reply at once; where the request was not read to its end, hang up, but only a moment later."""
    if request.state.is_read:
        await _reply(error)(request.scope, request.receive, send)
        return

    async def send_unfinished(message: Message) -> None:
        is_body = message["type"] == "http.response.body"
        await send({**message, "more_body": True} if is_body else message)

    await _reply(error, close=True)(request.scope, request.receive, send_unfinished)
    await linger(request)
    await send({"type": "http.response.body", "body": b""})


def _reply(error: APIError, close: bool = False) -> JSONResponse:
    return JSONResponse(error.body, error.status, error.headers | ({"Connection": "close"} if close else {}))


async def _answer(request: Request, error: Any) -> Response:
    return _Refusal(error)


class _Refusal(Response):
    """An error of a route, of whose request something may be unread."""

    def __init__(self, error: APIError) -> None:
        self.error = error
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _refuse(self.error, Request(scope, receive), send)


async def _not_found(request: Request, error: Any) -> Response:
    message = {404: f"there is nothing at {request.url.path[:100]}", 405: "this address takes another method"}
    reply = _reply(APIError(error.status_code, message.get(error.status_code, str(error.detail)[:200])))
    reply.headers.update(error.headers or {})  # such as Allow
    return reply


async def _left(request: Request, error: Any) -> Response:
    return Response(status_code=CLIENT_LEFT)


@health.head("/healthz", include_in_schema=False)
@health.get("/healthz")
async def healthz() -> dict[str, str]:
    """Whether the server is alive."""
    return {"status": "ok"}


@health.head("/readyz", include_in_schema=False, response_model=None)
@health.get("/readyz", response_model=None)
async def readyz(request: Request) -> JSONResponse:
    """Whether it takes on work: 503 while it is full or stops."""
    service: Service = request.app.state.service
    state = "stopping" if service.admission.is_draining else "busy" if service.admission.is_full else "ready"
    facts = {
        "model": service.config.model,
        "model_loaded": service.worker.is_loaded,
        "needs_key": service.access.needs_key,
    }
    return JSONResponse({"status": state} | facts, 200 if state == "ready" else 503)


@health.get("/metrics", response_model=None)
async def metrics(request: Request) -> Response:
    """Metrics for Prometheus."""
    service: Service = request.app.state.service
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


@models.get("")
async def list_models(request: Request) -> dict[str, Any]:
    """The model, and the names under which it may be requested."""
    service: Service = request.app.state.service
    return {"object": "list", "data": [_model(name, service) for name in service.models]}


@models.get("/{name:path}")
async def retrieve_model(name: str, request: Request) -> dict[str, Any]:
    """One model of the list."""
    service: Service = request.app.state.service
    if name not in service.models:
        raise APIError(404, f"there is no model '{name[:100]}' here: /v1/models lists them", "model", "model_not_found")
    return _model(name, service)


def _model(name: str, service: Service) -> dict[str, Any]:
    facts = service.worker.facts
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "asr-doge",
        "is_alias": name != service.config.model,
        "has_word_times": facts.has_word_times,
    }
