"""Browser apps of other origins, which may use the API if --allow-origin names them.

Scope: CORS for the API's paths, outside access control: an allowed app's requests go on like those of a program, to the same
checks of host and token, and every other origin is refused. Knows no routes but their prefix.
"""

from __future__ import annotations

from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from qlora_chat.api.errors import error_body
from qlora_chat.server.access_control import same_origin

API = "/v1"
METHODS = ("GET", "HEAD", "POST")
EXPOSED = ("retry-after", "x-conversation-id", "x-ignored-fields", "x-request-id")
"""Headers of a response that an app may read."""
_SENT_BY_BROWSERS = (b"origin", b"sec-fetch-site")


class BrowserApps:
    """Wraps access control. `origins` are exact: scheme, host and port as a browser sends them."""

    def __init__(self, app: ASGIApp, origins: Iterable[str]) -> None:
        self._app, self._origins = app, frozenset(origins)
        self._cors = CORSMiddleware(
            self._as_program, self._origins, METHODS, allow_headers=["*"], allow_private_network=True, expose_headers=EXPOSED
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        origin = headers.get("origin")
        if origin is None or not _is_api(scope["path"]) or same_origin(origin, headers.get("host", "")):
            await self._app(scope, receive, send)
        elif origin in self._origins:
            await self._cors(scope, receive, send)
        else:
            await _refusal(origin)(scope, receive, send)

    async def _as_program(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an allowed app's request on without the headers by which access control knows a browser."""
        sent = [each for each in scope["headers"] if each[0].lower() not in _SENT_BY_BROWSERS]
        await self._app({**scope, "headers": sent}, receive, send)


def _is_api(path: str) -> bool:
    return path == API or path.startswith(f"{API}/")


def _refusal(origin: str) -> Response:
    shown = ascii(origin[:100])[1:-1]
    message = f"Requests from pages of {shown} are refused; serve --allow-origin {shown} lets them use the API."
    if origin == "null":  # of files and of sandboxed frames, which no option can name
        message = "Requests from pages without an origin are refused: open the page over http, not as a file or in a sandbox."
    return JSONResponse(error_body(403, message, "origin_not_allowed"), 403, {"vary": "Origin"})
