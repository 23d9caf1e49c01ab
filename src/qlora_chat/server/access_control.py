"""Who may ask for what: host, origin, path, size, password. Pure ASGI, around everything else.

Scope: every request passes here first, and what is not allowed goes no further. Knows no Gradio and no chat; paths
that Gradio would serve and the page does not need (uploads, files, proxies, monitoring) are absent from the lists.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Mapping
from html import escape
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qlora_chat.api.app import OPENAPI
from qlora_chat.api.errors import error_body
from qlora_chat.serving.probes import HEALTH, METRICS, READY
from qlora_chat.settings import ServeSettings, is_loopback

MOST_BODY_BYTES = 2 * 2**20
BODY_SECONDS = 10.0
"""A body that takes longer is a client that holds a connection open."""
WRONG_PASSWORD_SECONDS = 0.5

LOGIN = "/login"
API = "/v1/"
MODELS = "/v1/models"
ONE_MODEL = f"{MODELS}/"
ADMIN_WRITES = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
API_WRITES = frozenset({"/v1/chat/completions", "/v1/completions"}) | ADMIN_WRITES
SERVER_READS = frozenset({HEALTH, READY, METRICS, OPENAPI})
PAGE_READS = frozenset(
    {"/", "/page.js", "/theme.css", "/favicon.ico", "/gradio_api/startup-events", "/gradio_api/queue/data",
     "/gradio_api/app_id", "/gradio_api/info", "/config", "/gradio_api/theme.css"}
)  # fmt: skip
PAGE_PREFIXES = ("/assets/", "/static/", "/svelte/", "/gradio_api/heartbeat/")
PAGE_WRITES = frozenset({"/gradio_api/queue/join", "/gradio_api/cancel", "/gradio_api/run/predict", LOGIN})


def route_of(path: str) -> str:
    """The route that a path belongs to, for metrics and logs: one of a fixed set, whatever a client asks for."""
    if path in SERVER_READS or path in API_WRITES or path == MODELS:
        return path
    if path.startswith(ONE_MODEL):
        return f"{ONE_MODEL}{{model}}"
    return "page" if path in PAGE_READS or path in PAGE_WRITES or path.startswith(PAGE_PREFIXES) else "other"


class AccessControl:
    """Wraps an ASGI app. Refusals: 421 host, 403 origin, 404 path, 405 method, 413 and 408 body, 401 password."""

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self._app = app
        self._hosts = _host_names(settings)
        self._any_address = settings.host in ("0.0.0.0", "::", "")
        self._password = _Password(settings.token) if settings.token else None
        self._api_tokens = [token.encode() for token in settings.api_tokens]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page opens no WebSocket
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = _headers(scope)
        if refusal := self._refusal(scope, headers):
            await _refuse(scope, send, *refusal)
            return
        if scope["method"] != "POST":
            await self._let_in(scope, receive, send, headers, b"")
            return
        body, refusal = await _whole_body(receive, headers)
        if refusal:
            await _refuse(scope, send, *refusal)
            return
        await self._let_in(scope, _replaying(body, receive), send, headers, body)

    def _refusal(self, scope: Scope, headers: Mapping[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if not self._serves(host):
            return 421, f"This server does not answer for the host {host[:100]!r}."
        if "origin" in headers and not _same_origin(headers["origin"], host):
            return 403, "Requests from other sites are refused."
        if scope["method"] == "POST" and headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return 403, "Requests from other sites are refused."
        return _path_refusal(scope["method"], scope["path"])

    def _serves(self, host: str) -> bool:
        """Whether a Host header names this server. A name that is not known may be another site's (DNS rebinding)."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self._hosts or is_loopback(name) or (self._any_address and _is_address(name))

    async def _let_in(self, scope: Scope, receive: Receive, send: Send, headers: Mapping[str, str], body: bytes) -> None:
        if self._password is None or scope["path"] == HEALTH:
            if scope["path"] == LOGIN:
                await _respond(send, 404, "There is no password to give.")
                return
            await self._app(scope, receive, send)
            return
        if scope["path"] == LOGIN:
            await self._password.log_in(body, send, secure=scope.get("scheme") == "https")
            return
        if self._password.given(headers):
            scope.setdefault("state", {})["token"] = "token"
        elif (number := self._api_token(headers)) and (scope["path"] in ADMIN_WRITES or not scope["path"].startswith(API)):
            await _refuse(scope, send, 403, "This token is for chats and completions under /v1 only.")
            return
        elif number:
            scope.setdefault("state", {})["token"] = f"api-token-{number}"
        else:
            await _login_page(send) if scope["path"] == "/" else await _refuse(scope, send, 401, "A password is needed.")
            return
        await self._app(scope, receive, send)

    def _api_token(self, headers: Mapping[str, str]) -> int:
        """Which of the API's tokens came, counted from 1; 0 for none. All are compared, so that time tells nothing."""
        given = _bearer(headers).encode("utf-8", "replace")
        matching = [number for number, each in enumerate(self._api_tokens, 1) if hmac.compare_digest(given, each)]
        return matching[0] if matching else 0


class _Password:
    """Checks the token in an Authorization header or, derived, in the cookie that the login form sets."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()
        self._proof = hmac.new(self._token, b"qlora-chat page cookie", "sha256").hexdigest()
        # A name of its own for each password: pages on other ports of this machine share its cookies.
        self._cookie = f"qlora_chat_{hmac.new(self._token, b'qlora-chat cookie name', 'sha256').hexdigest()[:8]}"

    def given(self, headers: Mapping[str, str]) -> bool:
        if self._matches(_bearer(headers)):
            return True
        cookies = (each.strip().partition("=") for each in headers.get("cookie", "").split(";"))
        proofs = [value.encode() for name, _, value in cookies if name == self._cookie]
        return any(hmac.compare_digest(proof, self._proof.encode()) for proof in proofs)

    async def log_in(self, body: bytes, send: Send, secure: bool) -> None:
        token = _form_field(body, "token")
        if not self._matches(token):
            await asyncio.sleep(WRONG_PASSWORD_SECONDS)
            await _login_page(send, "That password is not right.")
            return
        cookie = f"{self._cookie}={self._proof}; Path=/; HttpOnly; SameSite=Strict{'; Secure' if secure else ''}"
        await _respond(send, 303, "", headers={"location": "/", "set-cookie": cookie})

    def _matches(self, token: str) -> bool:
        return hmac.compare_digest(token.encode("utf-8", "replace"), self._token)


def _bearer(headers: Mapping[str, str]) -> str:
    """The token of an Authorization header, or ""."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _form_field(body: bytes, name: str) -> str:
    """A field of an urlencoded form, or "" where it is missing or the body is something else."""
    try:
        return parse_qs(body.decode("utf-8", "replace"), max_num_fields=5).get(name, [""])[0]
    except ValueError:
        return ""


def _host_names(settings: ServeSettings) -> frozenset[str]:
    names = {settings.host, *settings.allowed_hosts}
    return frozenset(name.strip("[]").lower() for name in names if name)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _same_origin(origin: str, host: str) -> bool:
    """Whether an Origin ("null" for sandboxed and local files) is the host that was asked; a proxy may add the TLS."""
    parts = urlsplit(origin)
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()


def _path_refusal(method: str, path: str) -> tuple[int, str] | None:
    if ".." in path.split("/") or "\\" in path or "\0" in path or "//" in path:
        return 404, "Not found."
    readable = path in PAGE_READS or path in SERVER_READS or path == MODELS or path.startswith((*PAGE_PREFIXES, ONE_MODEL))
    writable = path in PAGE_WRITES or path in API_WRITES
    if not readable and not writable:
        return 404, "Not found."
    if (method in ("GET", "HEAD") and readable) or (method == "POST" and writable):
        return None
    return 405, f"{method[:20]} is not allowed here."


async def _whole_body(receive: Receive, headers: Mapping[str, str]) -> tuple[bytes, tuple[int, str] | None]:
    """The body, or why it is refused. Counting bytes also catches those that come chunked, without a length."""
    too_large = 413, f"The request is larger than {MOST_BODY_BYTES:,} bytes. Shorten the message, or send it in parts."
    length = headers.get("content-length", "0")
    if length.isdigit() and int(length[:20]) > MOST_BODY_BYTES:
        return b"", too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                body += message.get("body", b"")
                if len(body) > MOST_BODY_BYTES:
                    return b"", too_large
                if not message.get("more_body"):
                    return bytes(body), None
    except TimeoutError:
        return b"", (408, "The request took too long to arrive.")


def _replaying(body: bytes, receive: Receive) -> Receive:
    """A receive that gives the body once more, then whatever the client does next (it may leave)."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


async def _refuse(scope: Scope, send: Send, status: int, text: str) -> None:
    """A refusal: in OpenAI's shape where a client of the API asks, plain elsewhere."""
    headers = {"www-authenticate": "Bearer"} if status == 401 else {}
    if status == 405:
        headers["allow"] = "POST" if scope["path"] in PAGE_WRITES | API_WRITES else "GET, HEAD"
    if scope["path"].startswith(API):
        await _respond(send, status, json.dumps(error_body(status, text)), "application/json", headers)
    else:
        await _respond(send, status, text, headers=headers)


async def _respond(
    send: Send, status: int, text: str, kind: str = "text/plain", headers: Mapping[str, str] | None = None
) -> None:
    body = text.encode()
    named: dict[str, Any] = {"content-type": f"{kind}; charset=utf-8", "content-length": str(len(body)), **(headers or {})}
    if status in (408, 413):
        named["connection"] = "close"  # what is left of the body is not read
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in named.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


async def _login_page(send: Send, problem: str = "") -> None:
    await _respond(send, 401, _LOGIN_PAGE.replace("{problem}", escape(problem)), "text/html")


_LOGIN_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>QLoRA Chat</title>
<style>
:root { color-scheme: light dark; font-family: system-ui, sans-serif; }
body { display: grid; min-height: 90vh; place-items: center; margin: 0; }
form { display: grid; gap: .75rem; width: min(20rem, 90vw); }
input, button { font: inherit; padding: .6rem; border-radius: .5rem; border: 1px solid #8888; }
p { margin: 0; color: #c00; min-height: 1.2em; }
</style></head>
<body><form method="post" action="/login">
<h1>QLoRA Chat</h1>
<label for="token">Password</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<button>Enter</button>
<p role="alert">{problem}</p>
</form></body></html>
"""
