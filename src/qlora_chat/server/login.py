"""The page's password: the form that takes it, and the cookie that proves it.

Scope: one password for everybody. Knows no routes but its own.
"""

from __future__ import annotations

import asyncio
import hmac
from html import escape
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from qlora_chat.server.access_control import WRONG_CREDENTIALS_DELAY_S, bearer_token, tokens_equal

LOGIN = "/login"


class Password:
    """Password of the page, sent as a bearer token or, derived, in the cookie that the login form sets."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._proof = hmac.new(token.encode(), b"qlora-chat page cookie", "sha256").hexdigest()
        # The name depends on the password: pages on other ports of this machine share the cookies.
        self._cookie = f"qlora_chat_{hmac.new(token.encode(), b'qlora-chat cookie name', 'sha256').hexdigest()[:8]}"

    def opens(self, headers: Headers) -> bool:
        """True if the request has the password or its cookie."""
        if self.matches(bearer_token(headers)):
            return True
        cookies = (each.strip().partition("=") for each in headers.get("cookie", "").split(";"))
        return any(tokens_equal(value, self._proof) for name, _, value in cookies if name == self._cookie)

    def matches(self, token: str) -> bool:
        """True if this is the password."""
        return tokens_equal(token, self._token)

    def cookie(self, *, secure: bool) -> str:
        """Set-Cookie header; `secure` if the request came by TLS."""
        return f"{self._cookie}={self._proof}; Path=/; HttpOnly; SameSite=Strict{'; Secure' if secure else ''}"


class LoginForm:
    """Wraps an ASGI app and answers POST /login itself; a wrong password shows the form again, after a delay."""

    def __init__(self, app: ASGIApp, password: Password) -> None:
        self._app, self._password = app, password

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != LOGIN:
            await self._app(scope, receive, send)
            return
        response = await self._log_in(Request(scope, receive))
        await response(scope, receive, send)

    async def _log_in(self, request: Request) -> Response:
        if not self._password.matches(_form_field(await request.body(), "token")):
            await asyncio.sleep(WRONG_CREDENTIALS_DELAY_S)
            return HTMLResponse(login_page("That password is not right."), 401)
        return RedirectResponse("/", 303, {"set-cookie": self._password.cookie(secure=request.url.scheme == "https")})


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
