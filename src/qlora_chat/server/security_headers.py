"""Security headers on every response, and the page's content policy, which lists its own inline scripts by their hash.

Scope: what browsers may do with responses. Knows nothing of their content. A script that reaches the page in any other way
(a message, an answer, an injected tag) has no hash and does not run.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_INLINE_SCRIPT = re.compile(rb"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL)

_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "x-dns-prefetch-control": "off",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_PAGE_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; connect-src 'self'; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)

ContentPolicy = Callable[[bytes], str]
"""Content-Security-Policy of an HTML document; of an empty one for every other response."""


class SecurityHeaders:
    """Wraps an ASGI app."""

    def __init__(self, app: ASGIApp, policy: ContentPolicy) -> None:
        self._app, self._policy = app, policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"] == "/":
            # Scripts in a compressed page could not be hashed.
            scope = {**scope, "headers": [each for each in scope["headers"] if each[0].lower() != b"accept-encoding"]}
        await self._app(scope, receive, _HeaderWriter(send, self._policy))


class _HeaderWriter:
    """A send channel that adds the headers; an HTML document is held back until it is whole, for its hashes."""

    def __init__(self, send: Send, policy: ContentPolicy) -> None:
        self._send, self._policy = send, policy
        self._start: Message | None = None
        self._html = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._begin(message)
            return
        if self._start is None or message["type"] != "http.response.body":
            await self._send(message)
            return
        self._html += message.get("body", b"")
        if message.get("more_body"):
            return
        MutableHeaders(raw=self._start["headers"])["content-security-policy"] = self._policy(self._html)
        await self._send(self._start)
        await self._send({"type": "http.response.body", "body": self._html})

    async def _begin(self, message: Message) -> None:
        message["headers"] = list(message.get("headers", ()))
        headers = MutableHeaders(raw=message["headers"])
        headers.update(_HEADERS)
        if headers.get("content-type", "").startswith("text/html"):
            headers["cache-control"] = "no-store"
            self._start = message
            return
        headers["content-security-policy"] = self._policy(b"")
        await self._send(message)


def page_policy(html: bytes) -> str:
    """Content policy of the page: its own origin only, and exactly the inline scripts that it has.

    Gradio compiles the small functions that the page attaches to events, hence 'unsafe-eval'; it styles single elements,
    hence inline styles.
    """
    digests = (base64.b64encode(hashlib.sha256(script).digest()).decode() for script in _INLINE_SCRIPT.findall(html))
    scripts = " ".join(f"'sha256-{each}'" for each in digests)
    return f"{_PAGE_POLICY}; script-src 'self' 'unsafe-eval' {scripts}".strip()
