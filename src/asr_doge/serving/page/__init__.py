"""The page at `/`: drop a file, or hold a button and speak.

Promises: it is served from the files of this folder unchanged; it loads nothing from elsewhere, which its content
security policy enforces.
"""

from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import Response

PREFIX = "/page/"
ASSETS = {
    "page.css": "text/css",
    "page.js": "text/javascript",
    "live.js": "text/javascript",
    "recorder.js": "text/javascript",
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " media-src blob:; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "microphone=(self)",
    "Cache-Control": "no-cache",
}

router = APIRouter(include_in_schema=False)


@router.head("/", response_model=None)
@router.get("/", response_model=None)
async def index() -> Response:
    """The page."""
    return _asset("index.html", "text/html")


@router.get(PREFIX + "{name}", response_model=None)
async def asset(name: str) -> Response:
    """What the page consists of."""
    if name not in ASSETS:
        return Response(status_code=404)
    return _asset(name, ASSETS[name])


def _asset(name: str, kind: str) -> Response:
    content = files(__name__).joinpath(name).read_bytes()
    return Response(content, media_type=f"{kind}; charset=utf-8", headers=_HEADERS)
