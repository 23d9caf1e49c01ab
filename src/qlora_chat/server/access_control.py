"""Checks that a request passes before it reaches an app: host, origin, the server's own policy, body.

Scope: pure ASGI, the same for the page's server and the receiver. Knows no paths, tokens or formats: they are the policy's.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address
from typing import Protocol
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from qlora_chat.server.connection_limits import MOST_BODY_BYTES, MOST_HELD_BYTES, BodyBytes, client_address
from qlora_chat.server.content_encoding import decoded
from qlora_chat.server.request_body import BodyLimit, Refused, read_body
from qlora_chat.serving.http_messages import replay
from qlora_chat.settings import is_loopback

RETRY = {"retry-after": "5"}


class AccessPolicy(Protocol):
    """The part of access control in which servers differ."""

    body_limit: BodyLimit
    body_limits: Mapping[str, BodyLimit]
    """Of paths with a limit of their own."""
    allow_links: bool
    """True if pages of other sites may link to this server and read from it by GET."""

    async def authorize(self, scope: Scope, headers: Headers) -> None:
        """Check path, method and credentials, none of which need the body. Raises Refused."""
        ...

    def response(self, scope: Scope, refused: Refused) -> Response:
        """Format a refusal for this server's clients."""
        ...


class AccessControl:
    """Wraps an ASGI app. Refuses with 421 (host), 403 (origin), the policy's statuses, then 413, 408, 400, 415 or 503 (body).

    `trusted_proxies` are addresses or networks whose X-Forwarded-For, -Proto and -Host count.
    """

    def __init__(
        self, app: ASGIApp, policy: AccessPolicy, host: str, allowed_hosts: Iterable[str], trusted_proxies: Sequence[str] = ()
    ) -> None:
        self._app, self._policy = app, policy
        self._arriving = BodyBytes(max(MOST_BODY_BYTES, 4 * policy.body_limit.size))
        self._held = BodyBytes(max(MOST_HELD_BYTES, 4 * policy.body_limit.size))
        self._forwarded = ProxyHeadersMiddleware(self._check, list(trusted_proxies))  # type: ignore[arg-type]
        self._host_names = frozenset(name.strip("[]").lower() for name in (host, *allowed_hosts) if name)
        self._any_address = host in ("0.0.0.0", "::", "")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no server here has WebSockets
            await send({"type": "websocket.close", "code": 1008})
            return
        client = scope.get("client")
        is_proxy = bool(client and client[0] in self._forwarded.trusted_hosts)
        scope.setdefault("state", {})["by_proxy"] = is_proxy
        await self._forwarded(scope, receive, send)  # type: ignore[arg-type]

    async def _check(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        try:
            self._check_site(scope["method"], headers, by_proxy=scope["state"]["by_proxy"])
            await self._policy.authorize(scope, headers)
        except Refused as refused:
            await self._policy.response(scope, refused)(scope, receive, send)
            return
        if scope["method"] == "POST":
            await self._pass_body(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _pass_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, and count it until the app has answered, because the app has it in memory until then."""
        headers, address = Headers(scope=scope), client_address(scope.get("client"))
        limit = self._policy.body_limits.get(scope["path"], self._policy.body_limit)
        with self._held.share_of(address) as hold:
            try:
                with self._arriving.share_of(address) as take:
                    body = decoded(await read_body(receive, headers, limit, take), headers, limit.size)
                if not hold(len(body)):
                    raise Refused(503, "Too many large requests wait for their answers. Try again in a moment.", RETRY)
            except Refused as refused:
                await self._policy.response(scope, refused)(scope, receive, send)
                return
            await self._app(scope, replay(body, receive), send)

    def _check_site(self, method: str, headers: Headers, *, by_proxy: bool) -> None:
        host = headers.get("host", "")
        forwarded = [each.strip() for value in headers.getlist("x-forwarded-host") for each in value.split(",")]
        unknown = [each for each in (host, *forwarded) if not self._is_own_host(each)]
        if unknown:
            raise Refused(
                421, f"This server does not answer for the host {unknown[0][:100]!r}; --allow-host NAME allows a name."
            )
        # Gradio tells the page to send its requests to the host that these headers name.
        if "x-gradio-server" in headers or (not by_proxy and any(each != host for each in forwarded)):
            raise Refused(421, "A forwarding header names another host; --trusted-proxy ADDRESS allows a proxy to send it.")
        if "origin" in headers and not same_origin(headers["origin"], host):
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


def same_origin(origin: str, host: str) -> bool:
    """True if an Origin ("null" for sandboxed frames and local files) has this host. A proxy may add TLS."""
    return origin.lower() in (f"http://{host}".lower(), f"https://{host}".lower())
