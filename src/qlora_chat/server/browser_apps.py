"""Browser apps of other origins, which may use the API if --allow-origin names them.

Scope: CORS for the API's paths, outside access control: an allowed app's requests go on like those of a program, to the same
checks of host and token, and every other origin is refused. Knows no routes but their prefix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qlora_chat.api.errors import error_body

API = "/v1"
METHODS = "GET, HEAD, POST"
EXPOSED = "retry-after, x-conversation-id, x-ignored-fields, x-request-id"
"""Headers of a response that an app may read."""
PREFLIGHT_S = 600
"""Time for which a browser remembers that it may."""
_HEADER_NAMES = re.compile(r"[A-Za-z0-9_, -]{1,2000}")
_SENT_BY_BROWSERS = (b"origin", b"sec-fetch-site")


class BrowserApps:
    """Wraps access control. `origins` are exact: scheme, host and port as a browser sends them."""

    def __init__(self, app: ASGIApp, origins: Iterable[str]) -> None:
        self._app, self._origins = app, frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        origin, host = headers.get("origin"), headers.get("host", "").lower()
        if origin is None or not _is_api(scope["path"]) or origin.lower() in (f"http://{host}", f"https://{host}"):
            await self._app(scope, receive, send)
        elif origin.lower() not in self._origins:
            await _refusal(origin)(scope, receive, send)
        elif scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await _preflight(origin, headers)(scope, receive, send)
        else:
            sent = [each for each in scope["headers"] if each[0].lower() not in _SENT_BY_BROWSERS]
            await self._app({**scope, "headers": sent}, receive, _readable_by(origin, send))


def _is_api(path: str) -> bool:
    return path == API or path.startswith(f"{API}/")


def _refusal(origin: str) -> Response:
    shown = ascii(origin[:100])[1:-1]
    message = f"Requests from pages of {shown} are refused; serve --allow-origin {shown} lets them use the API."
    if origin == "null":  # of files and of sandboxed frames, which no option can name
        message = "Requests from pages without an origin are refused: open the page over http, not as a file or in a sandbox."
    return JSONResponse(error_body(403, message, "origin_not_allowed"), 403, {"vary": "Origin"})


def _preflight(origin: str, requested: Headers) -> Response:
    """Answer to a browser that asks before it sends the app's request."""
    headers = {
        "access-control-allow-origin": origin,
        "access-control-allow-methods": METHODS,
        "access-control-max-age": str(PREFLIGHT_S),
        "vary": "Origin, Access-Control-Request-Headers",
    }
    names = requested.get("access-control-request-headers", "")
    if _HEADER_NAMES.fullmatch(names):
        headers["access-control-allow-headers"] = names
    if requested.get("access-control-request-private-network") == "true":
        headers["access-control-allow-private-network"] = "true"
    return Response(status_code=204, headers=headers)


def _readable_by(origin: str, send: Send) -> Send:
    """A send channel whose response the app may read."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = list(message.get("headers", ()))
            headers = MutableHeaders(raw=message["headers"])
            headers["access-control-allow-origin"] = origin
            headers["access-control-expose-headers"] = EXPOSED
            headers.add_vary_header("Origin")
        await send(message)

    return sent
