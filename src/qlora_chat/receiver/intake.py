"""Who may send and see what: host, origin, token, signature, size. And what a sender is answered.

Scope: the HTTP side of receiving. Every request passes `Guard` first. Knows no tables and no plots.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from qlora_chat.delivery.signing import IDEMPOTENCY_HEADER, BadSignature, verify
from qlora_chat.receiver.database import StoreError
from qlora_chat.receiver.records import Record, RecordRefused, read_record
from qlora_chat.receiver.writer import Writer
from qlora_chat.settings import ReceiverSettings, is_loopback

MOST_BODY_BYTES = 8 * 2**20
"""A record holds its whole conversation, so it may be larger than any one message."""
BODY_SECONDS = 15.0
WRONG_TOKEN_SECONDS = 0.5
RETRY_SECONDS = 5
HEALTH = "/health"

_SAFE = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
}


class IntakeGuard:
    """Wraps an ASGI app; what is not allowed goes no further."""

    def __init__(self, app: ASGIApp, settings: ReceiverSettings) -> None:
        self._app, self._settings = app, settings
        self._hosts = {name.strip("[]").lower() for name in (settings.host, *settings.allowed_hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing here opens a WebSocket
            await send({"type": "websocket.close", "code": 1008})
            return
        refusal = await self._refusal(scope)
        if refusal is not None:
            refusal.headers.update(_SAFE)
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, _labelled(send))

    async def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if not self._serves(headers.get("host", "")):
            return PlainTextResponse("This server does not answer for that host; --allow-host NAME makes it.", 421)
        if "origin" in headers or headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return PlainTextResponse("Requests from web pages are refused.", 403)
        if scope["path"] == HEALTH or self._may_pass(scope["method"], headers):
            return None
        await asyncio.sleep(WRONG_TOKEN_SECONDS if "authorization" in headers else 0)
        asked = {"www-authenticate": 'Basic realm="QLoRA Chat logs", charset="UTF-8"'} if scope["method"] != "POST" else {}
        return PlainTextResponse("LOGGING_TOKEN is needed: as a bearer token, or as the password.", 401, asked)

    def _serves(self, host: str) -> bool:
        """Whether a Host header names this server. A name that is not known may be another site's (DNS rebinding)."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self._hosts or is_loopback(name)

    def _may_pass(self, method: str, headers: Mapping[str, str]) -> bool:
        """A browser sends a password along by itself, so it opens pages only; to write takes the bearer token."""
        if self._settings.token is None:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self._is_token(given.strip())
        return method in ("GET", "HEAD") and scheme.lower() == "basic" and self._is_token(_basic_password(given))

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "replace"), str(self._settings.token).encode())


def _labelled(send: Send) -> Send:
    async def labelled(message: dict) -> None:
        if message["type"] == "http.response.start":
            extra = [(name.encode(), value.encode()) for name, value in _SAFE.items()]
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        await send(message)

    return labelled  # type: ignore[return-value]


def _basic_password(given: str) -> str:
    try:
        return base64.b64decode(given.strip(), validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""


class Intake:
    """Answers senders: 200 once a record is on disk, or was before."""

    def __init__(self, writer: Writer, secret: str | None) -> None:
        self._writer, self._secret = writer, secret

    async def receive(self, request: Request) -> Response:
        """Take one record from a request's body."""
        body = await _whole_body(request)
        if isinstance(body, Response):
            return body
        try:
            record = self._read(request.headers, body)
        except BadSignature as problem:
            return _refused(401, str(problem))
        except RecordRefused as problem:
            return _refused(400, str(problem))
        try:
            outcome = await self._writer.add(record)
        except StoreError as problem:
            return _refused(503, str(problem), {"retry-after": str(RETRY_SECONDS)})
        return JSONResponse({"id": record.id, "status": outcome})

    def _read(self, headers: Headers, body: bytes) -> Record:
        given = headers.get(IDEMPOTENCY_HEADER)
        if self._secret is not None:
            signed = verify(self._secret, headers, body)
            if given not in (None, signed):
                raise RecordRefused(f"{IDEMPOTENCY_HEADER} is not the id that was signed")
            given = signed
        return read_record(body, given)


def _refused(status: int, problem: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": problem}, status, headers)


async def _whole_body(request: Request) -> bytes | Response:
    """The body, or the answer that refuses it. Counting bytes also catches those that come chunked, without a length."""
    if request.headers.get("content-encoding", "identity") != "identity":
        return _refused(415, "send the body as it is, without Content-Encoding")
    too_large = _refused(413, f"the record is larger than {MOST_BODY_BYTES:,} bytes", {"connection": "close"})
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length[:20]) > MOST_BODY_BYTES:
        return too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MOST_BODY_BYTES:
                    return too_large
    except TimeoutError:
        return _refused(408, "the record took too long to arrive", {"connection": "close"})
    except ClientDisconnect:
        return _refused(400, "the record was cut off")
    return bytes(body)
