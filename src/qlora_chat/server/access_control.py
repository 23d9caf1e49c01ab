"""Checks that a request passes before it reaches an app: host, origin, the server's own policy, body.

Scope: pure ASGI, the same for the page's server and the receiver. Knows no paths, tokens or formats: they are the policy's.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Protocol
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from qlora_chat.server.request_body import BodyLimit, Refused, read_body, replay
from qlora_chat.settings import is_loopback

WRONG_CREDENTIALS_DELAY_S = 0.5
"""Wait before a wrong password or token is answered."""


class AccessPolicy(Protocol):
    """The part of access control in which servers differ."""

    body_limit: BodyLimit
    allow_links: bool
    """True if pages of other sites may link to this server and read from it by GET."""

    async def authorize(self, scope: Scope, headers: Headers) -> None:
        """Check path, method and credentials, none of which need the body. Raises Refused."""
        ...

    def response(self, scope: Scope, refused: Refused) -> Response:
        """Format a refusal for this server's clients."""
        ...


class AccessControl:
    """Wraps an ASGI app. Refuses with 421 (host), 403 (origin), the policy's statuses, then 413, 408 or 400 (body)."""

    def __init__(self, app: ASGIApp, policy: AccessPolicy, host: str, allowed_hosts: Iterable[str]) -> None:
        self._app, self._policy = app, policy
        self._host_names = frozenset(name.strip("[]").lower() for name in (host, *allowed_hosts) if name)
        self._any_address = host in ("0.0.0.0", "::", "")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no server here has WebSockets
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = Headers(scope=scope)
        try:
            self._check_site(scope["method"], headers)
            await self._policy.authorize(scope, headers)
            if scope["method"] == "POST":
                receive = replay(await read_body(receive, headers, self._policy.body_limit), receive)
        except Refused as refused:
            await self._policy.response(scope, refused)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check_site(self, method: str, headers: Headers) -> None:
        host = headers.get("host", "")
        if not self._is_own_host(host):
            raise Refused(421, f"This server does not answer for the host {host[:100]!r}; --allow-host NAME allows a name.")
        if "origin" in headers and not _same_origin(headers["origin"], host):
            raise Refused(403, "Requests from other sites are refused.")
        if self._policy.allow_links and method != "POST":
            return
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise Refused(403, "Requests from other sites are refused.")

    def _is_own_host(self, host: str) -> bool:
        """True if a Host header names this server. An unknown name may be another site's (DNS rebinding)."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self._host_names or is_loopback(name) or (self._any_address and _is_address(name))


def authorization(headers: Headers) -> tuple[str, str]:
    """Scheme in lower case and credentials of the Authorization header; ("", "") without one."""
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    return scheme.lower(), credentials.strip()


def bearer_token(headers: Headers) -> str:
    """Token of the Authorization header; "" if it has none."""
    scheme, credentials = authorization(headers)
    return credentials if scheme == "bearer" else ""


def tokens_equal(received: str, expected: str) -> bool:
    """Compare in constant time; `received` may hold any character."""
    return hmac.compare_digest(received.encode("utf-8", "replace"), expected.encode())


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _same_origin(origin: str, host: str) -> bool:
    """True if an Origin ("null" for sandboxed frames and local files) has this host. A proxy may add TLS."""
    return origin.lower() in (f"http://{host}".lower(), f"https://{host}".lower())
