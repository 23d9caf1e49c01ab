"""Reasons for which a record did not arrive, as clauses for the person who set LOGGING_URL.

Scope: statuses and exceptions to words. They quote neither the record nor LOGGING_URL; of a redirect's target, no query and no
password.
"""

from __future__ import annotations

import errno
import http.client
import socket
import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit

from qlora_chat.text import plain

MAX_TARGET_CHARACTERS = 200
_STATUSES = {
    401: "the receiver refuses the token, status 401: set LOGGING_TOKEN to the token that it expects",
    403: "the receiver forbids it, status 403: check LOGGING_TOKEN and the path of LOGGING_URL",
    404: "the receiver has no such path, status 404: check the path of LOGGING_URL",
    405: "the receiver takes no POST there, status 405: check the path of LOGGING_URL",
    407: "a proxy in between asks for a password, status 407",
    408: "the receiver waited too long for the record, status 408",
    409: "the receiver has another record under this id, status 409",
    413: "the record is too large for the receiver, status 413",
    429: "the receiver asks for a pause, status 429",
}
_ERRNOS = {
    errno.ECONNREFUSED: "the connection was refused: nothing listens on the host and port of LOGGING_URL",
    errno.ECONNRESET: "the connection was reset by the receiver",
    errno.EPIPE: "the connection was closed by the receiver",
    errno.ENETUNREACH: "the receiver's network cannot be reached",
    errno.EHOSTUNREACH: "the receiver's host cannot be reached",
    errno.EMFILE: "this program has too many files and connections open",
}


def status_reason(status: int, location: str | None = None) -> str:
    """Clause for a status other than 2xx; `location` is the target of a redirect."""
    if 300 <= status < 400 and location:
        return f"redirected to {_target(location)}, status {status}: set LOGGING_URL to the address that takes the records"
    if 500 <= status < 600:
        return f"the receiver failed with status {status}"
    return _STATUSES.get(status, f"status {status}")


def _target(location: str) -> str:
    """Address of a redirect without a query and a password, shortened."""
    try:
        parts = urlsplit(location)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "an address that cannot be read"
    return plain((f"{parts.scheme}://{host}" if host else "") + parts.path)[:MAX_TARGET_CHARACTERS] or "/"


def failure_reason(problem: BaseException) -> str:
    """Clause for an attempt that ended without a status."""
    causes = list(_causes(problem))
    for cause in causes:
        if clause := _clause(cause):
            return clause
    system = next((each for each in causes if isinstance(each, OSError) and each.strerror), None)
    return f"the connection failed: {system.strerror}" if system else "the request could not be made: check LOGGING_URL"


def _clause(cause: BaseException) -> str | None:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return "the receiver's certificate is not good (expired, for another host, or of an unknown authority)"
    if isinstance(cause, ssl.SSLError):
        return "no TLS connection: the receiver may speak http only, or another version of TLS"
    if isinstance(cause, socket.gaierror):
        return "there is no such host: check the name in LOGGING_URL, and the network"
    if isinstance(cause, TimeoutError):
        return "the receiver did not answer in time"
    if isinstance(cause, http.client.RemoteDisconnected):
        return "the receiver closed the connection without an answer"
    if isinstance(cause, http.client.HTTPException):
        return "the receiver's answer is not HTTP"
    return _ERRNOS.get(cause.errno or 0) if isinstance(cause, OSError) else None


def _causes(problem: BaseException) -> Iterator[BaseException]:
    """The exception and those that it wraps, the innermost first."""
    seen: list[BaseException] = []
    waiting: list[object] = [problem]
    while waiting:
        each = waiting.pop(0)
        if not isinstance(each, BaseException) or each in seen:
            continue
        seen.append(each)
        waiting += [*each.args, getattr(each, "reason", None), each.__cause__, each.__context__]
    return reversed(seen)
