"""Cookies and bodies as every part of the server reads, sets and replaces them.

Scope: their text. Knows no cookie's meaning.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope


def is_secure(scope: Scope) -> bool:
    """True if the client's own connection is encrypted, here or up to a proxy. Lying here harms only the liar."""
    return scope.get("scheme") == "https" or Headers(scope=scope).get("x-forwarded-proto") == "https"


def cookie_values(headers: Headers, name: str) -> list[str]:
    """Values of the request's cookies of this name."""
    cookies = (each.strip().partition("=") for each in headers.get("cookie", "").split(";"))
    return [value for each, _, value in cookies if each == name]


def set_cookie(name: str, value: str, seconds: int, *, secure: bool) -> str:
    """Set-Cookie header of a cookie that no script and no other site can use; 0 seconds remove it."""
    return f"{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{'; Secure' if secure else ''}"


def replay(body: bytes, receive: Receive) -> Receive:
    """A receive channel that yields the body once, then whatever the client does next (it may disconnect)."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed
