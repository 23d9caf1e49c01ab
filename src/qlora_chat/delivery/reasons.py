"""Reasons for which a record did not arrive, as clauses for the person who set LOGGING_URL.

Scope: statuses and exceptions to words. They quote neither the record nor LOGGING_URL; of a redirect's target, no query and no
password.
"""

from __future__ import annotations

import errno
import socket
import ssl
from concurrent.futures import CancelledError
from urllib.parse import urlsplit

import httpx

from qlora_chat.errors import causes
from qlora_chat.text import plain

MAX_TARGET_CHARACTERS = 200
_STATUSES = {
    400: "the receiver does not understand the record, status 400: its log says why, or LOGGING_VERSION is another one",
    422: "the receiver does not accept the record, status 422: its log says why, or LOGGING_VERSION is another one",
    401: "the receiver refuses the token, status 401: set LOGGING_TOKEN to the token that it expects",
    403: "the receiver forbids it, status 403: check LOGGING_TOKEN and the path of LOGGING_URL",
    404: "the receiver has no such path, status 404: check the path of LOGGING_URL",
    405: "the receiver takes no POST there, status 405: check the path of LOGGING_URL",
    402: "the receiver asks for a payment, status 402: check its account",
    407: "a proxy in between asks for a password, status 407: use an address without that proxy",
    408: "the receiver waited too long for the record, status 408: check the network",
    409: "the receiver has another record under this id, status 409",
    410: "the receiver's address is gone for good, status 410: set LOGGING_URL to the new one",
    411: "the receiver wants a length that is sent, status 411: look whether a proxy in between removes it",
    413: "the record is too large for the receiver, status 413: raise its limit",
    414: "the address is too long for the receiver, status 414: shorten LOGGING_URL",
    415: "the receiver takes no JSON there, status 415: check the path of LOGGING_URL",
    421: "the receiver does not answer for this host, status 421: check the host of LOGGING_URL",
    426: "the receiver wants another protocol, status 426: does LOGGING_URL need https?",
    429: "the receiver asks for a pause, status 429",
    431: "the headers are too large for the receiver, status 431: is LOGGING_TOKEN right?",
    451: "the receiver may not take it for legal reasons, status 451: ask who runs it",
    501: "the receiver takes no POST, status 501: check LOGGING_URL",
    502: "what the receiver's proxy stands in front of does not answer, status 502: look whether it runs",
    503: "the receiver is not ready, status 503",
    504: "what the receiver's proxy stands in front of answers too slowly, status 504",
    507: "the receiver has no room left, status 507: free space there",
    511: "a network in between asks for a login, status 511: log in there",
}
_ERRNOS = {
    errno.ECONNREFUSED: "the connection was refused: nothing listens on the host and port of LOGGING_URL",
    errno.ECONNRESET: "the connection was reset by the receiver: its log may say why",
    errno.EPIPE: "the connection was closed by the receiver: its log may say why",
    errno.ENETUNREACH: "the receiver's network cannot be reached: check this machine's network",
    errno.EHOSTUNREACH: "the receiver's host cannot be reached: check its address and this machine's network",
    errno.EMFILE: "this program has too many files and connections open: raise the limit (ulimit -n)",
}


def status_reason(status: int, location: str | None = None) -> str:
    """Clause for a status other than 2xx; `location` is the target of a redirect."""
    if 300 <= status < 400 and location:
        return f"redirected to {_target(location)}, status {status}: set LOGGING_URL to the address that takes the records"
    if clause := _STATUSES.get(status):
        return clause
    if 500 <= status < 600:
        return f"the receiver failed with status {status}: its log says why"
    if 300 <= status < 400:
        return f"redirected to nowhere, status {status}: check LOGGING_URL"
    if status < 200:
        return f"the receiver sent no final answer, status {status}: is LOGGING_URL right?"
    return f"the receiver refuses it with status {status}: its log says why, or LOGGING_URL leads elsewhere"


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
    innermost_first = causes(problem)[::-1]
    for cause in innermost_first:
        if clause := _clause(cause):
            return clause
    system = next((each for each in innermost_first if isinstance(each, OSError) and each.strerror), None)
    return f"the connection failed: {system.strerror}" if system else "the request could not be made: check LOGGING_URL"


def _clause(cause: BaseException) -> str | None:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return "the receiver's certificate is not good (expired, another host's, or of an unknown authority; see LOGGING_CA)"
    if isinstance(cause, ssl.SSLError):
        return "no TLS connection: the receiver may speak http only, or another version of TLS"
    if isinstance(cause, socket.gaierror):
        return "there is no such host: check the name in LOGGING_URL, and the network"
    if isinstance(cause, TimeoutError):
        return "the receiver did not answer in time: look whether it is overloaded, or speaks something else than HTTP"
    if isinstance(cause, httpx.RemoteProtocolError):
        return "the receiver closed the connection without an answer in HTTP: check the host and port, or look into its log"
    if isinstance(cause, CancelledError):
        return "the program ended before the receiver answered"
    return _ERRNOS.get(cause.errno or 0) if isinstance(cause, OSError) else None
