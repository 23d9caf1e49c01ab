"""The page's password: the form that takes it, and the session that proves it until it expires or is ended.

Scope: one password for everybody. Knows no routes but its own.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import time
from collections.abc import Callable, Set
from html import escape
from typing import Protocol
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from qlora_chat.errors import UserError
from qlora_chat.server.access_control import tokens_equal
from qlora_chat.server.guesses import Guesses
from qlora_chat.server.request_body import Refused
from qlora_chat.serving.http_messages import cookie_values, is_secure, set_cookie

LOGIN, LOGOUT = "/login", "/logout"
SESSION_S = 24 * 60 * 60
"""Time after which the password has to be entered again."""
REREAD_S = 2.0
"""Time after which log-outs of other processes are read again."""
READ_S = 2.0
"""Longest time that a request waits for them to be read."""
NOT_RECORDED = (
    "This browser is logged out. A copy of its cookie works until tomorrow where other processes serve this page, because the "
    "log-out could not be recorded."
)

logger = logging.getLogger("qlora_chat.server")


class EndedSessions(Protocol):
    """Log-outs, where every process that takes the sessions reads them. Methods block, and may raise a UserError."""

    def add(self, name: str, ends_at: float) -> None:
        """Record that a session is ended; durable on return."""
        ...

    def names(self) -> Set[str]:
        """Names of the sessions that were ended."""
        ...


class Password:
    """Password of the page, sent as a bearer token or proved by the cookie of a session that the login form began.

    A cookie holds the session's end and its random name, signed with a key derived from the password. With `ended`, every
    process with the same password takes it until a log-out is recorded there. Without, the key is also this process's own: no
    other process takes the session, and none does after a restart, because it could not know of a log-out.
    """

    def __init__(self, token: str, ended: EndedSessions | None = None, clock: Callable[[], float] = time.time) -> None:
        self.token, self._clock = token, clock
        own = b"" if ended else secrets.token_bytes(32)
        self._key = hmac.digest(token.encode(), b"qlora-chat page session" + own, "sha256")
        # The name depends on the password: pages on other ports of this machine share the cookies.
        self._cookie = f"qlora_chat_{hmac.digest(token.encode(), b'qlora-chat cookie name', 'sha256').hex()[:8]}"
        self._log_outs = _LogOuts(ended)

    async def has_session(self, headers: Headers) -> bool:
        """True if the request comes with a session that has not ended."""
        session = self._session(headers)
        return session is not None and not await self._log_outs.include(session)

    def begin_session(self, *, secure: bool) -> str:
        """Set-Cookie header of a new session; `secure` if the request came by TLS."""
        session = f"{int(self._clock() + SESSION_S)}.{secrets.token_hex(16)}"
        return set_cookie(self._cookie, f"{session}.{self._signature(session)}", SESSION_S, secure=secure)

    async def end_session(self, headers: Headers) -> None:
        """End the request's session everywhere. UserError if that cannot be recorded; then it has ended in this process."""
        if session := self._session(headers):
            await self._log_outs.add(session, self._clock() + SESSION_S)

    def removal(self, *, secure: bool) -> str:
        """Set-Cookie header that removes the session from the browser."""
        return set_cookie(self._cookie, "", 0, secure=secure)

    def _session(self, headers: Headers) -> str | None:
        for value in cookie_values(headers, self._cookie):
            session, _, signature = value.rpartition(".")
            end = session.partition(".")[0]
            if tokens_equal(signature, self._signature(session)) and int(end) > self._clock():
                return session
        return None

    def _signature(self, session: str) -> str:
        return hmac.new(self._key, session.encode("utf-8", "replace"), "sha256").hexdigest()


class _LogOuts:
    """Sessions ended here, and those ended elsewhere as of the last reading, REREAD_S ago at most."""

    def __init__(self, recorded: EndedSessions | None) -> None:
        self._recorded = recorded
        self._here: dict[str, float] = {}
        self._elsewhere: Set[str] | None = None
        self._read_at = -REREAD_S

    async def add(self, session: str, ends_at: float) -> None:
        now = time.time()
        self._here = {name: end for name, end in self._here.items() if end > now} | {session: ends_at}
        if self._recorded:
            await asyncio.to_thread(self._recorded.add, session, ends_at)

    async def include(self, session: str) -> bool:
        """True for an ended session, and for any while log-outs could not be read even once."""
        if session in self._here:
            return True
        if self._recorded is None:
            return False
        if self._elsewhere is None or time.monotonic() - self._read_at >= REREAD_S:
            await self._read(self._recorded)
        return self._elsewhere is None or session in self._elsewhere

    async def _read(self, recorded: EndedSessions) -> None:
        """Read the log-outs. While the database is away, those that were read before count."""
        self._read_at = time.monotonic()
        try:
            async with asyncio.timeout(READ_S):
                self._elsewhere = await asyncio.to_thread(recorded.names)
        except (UserError, TimeoutError) as problem:
            logger.warning("log-outs could not be read: %s", str(problem) or "the history's database does not answer")


class LoginForm:
    """Wraps an ASGI app and answers POST /login and /logout itself; a wrong password shows the form again, after a delay."""

    def __init__(self, app: ASGIApp, password: Password, guesses: Guesses) -> None:
        self._app, self._password, self._guesses = app, password, guesses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in (LOGIN, LOGOUT):
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        if scope["path"] == LOGOUT:
            response = await self._log_out(request)
        else:
            response = await self._log_in(request)
        await response(scope, receive, send)

    async def _log_out(self, request: Request) -> Response:
        removal = {"set-cookie": self._password.removal(secure=is_secure(request.scope))}
        try:
            await self._password.end_session(request.headers)
        except UserError as problem:
            logger.warning("a log-out could not be recorded: %s", problem)
            return HTMLResponse(login_page(NOT_RECORDED), 503, removal)
        return RedirectResponse("/", 303, removal)

    async def _log_in(self, request: Request) -> Response:
        sent = _form_field(await request.body(), "token")
        try:
            if not await self._guesses.check(request.scope.get("client"), sent, [self._password.token]):
                return HTMLResponse(login_page("That password is not right."), 401)
        except Refused as refused:
            return HTMLResponse(login_page(refused.message), refused.status, refused.headers)
        return RedirectResponse("/", 303, {"set-cookie": self._password.begin_session(secure=is_secure(request.scope))})


def login_page(problem: str = "") -> str:
    """HTML of the form, with a problem to show under it."""
    return small_page(_LOGIN_FORM.replace("{problem}", escape(problem)))


def _form_field(body: bytes, name: str) -> str:
    """Field of an urlencoded form; "" if it is missing or the body is something else."""
    try:
        return parse_qs(body.decode("utf-8", "replace"), max_num_fields=5).get(name, [""])[0]
    except ValueError:
        return ""


def small_page(body: str, head: str = "") -> str:
    """HTML of a page without scripts, whose body is centred."""
    return _SMALL_PAGE.replace("{head}", head).replace("{body}", body)


_SMALL_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>QLoRA Chat</title>{head}
<style>
:root { color-scheme: light dark; font-family: system-ui, sans-serif; }
body { display: grid; min-height: 90vh; place-items: center; margin: 0; }
form { display: grid; gap: .75rem; width: min(20rem, 90vw); }
input, button { font: inherit; padding: .6rem; border-radius: .5rem; border: 1px solid #8888; }
p[role=alert] { margin: 0; color: #c00; min-height: 1.2em; }
</style></head>
<body>{body}</body></html>
"""
_LOGIN_FORM = """<form method="post" action="/login">
<h1>QLoRA Chat</h1>
<label for="token">Password</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<button>Enter</button>
<p role="alert">{problem}</p>
</form>"""
