"""The error of a server that gave no answer, and its reasons as clauses after its address, each with what to do.

Scope: statuses and exceptions to words. They quote no conversation.
"""

from __future__ import annotations

import errno
import socket
import ssl

import httpx

from qlora_chat.errors import causes

_NEXT_STEPS = {
    402: "its account has no credit",
    404: "check that --engine is its base URL, which usually ends in /v1, and that it serves the model of --engine-model",
    405: "it takes no completions at that address: check --engine",
    407: "a proxy in between asks for a password: use an address without it",
    408: "it waited too long for the request: try again",
    413: "the conversation is too long for it: begin a new one",
    429: "it is busy or its limit is reached: try again later",
    502: "what it stands in front of does not answer: look whether that runs",
    503: "it is not ready: try again in a moment",
    504: "what it stands in front of answers too slowly: look whether that runs",
}
_UNREACHABLE = "cannot be reached: "
_ERRNOS = {
    errno.ECONNREFUSED: f"{_UNREACHABLE}nothing listens on that host and port",
    errno.ENETUNREACH: f"{_UNREACHABLE}there is no way to its network from here",
    errno.EHOSTUNREACH: f"{_UNREACHABLE}there is no way to its host from here",
    errno.EMFILE: f"{_UNREACHABLE}this program has too many files and connections open",
}
_CLASSES: dict[type[BaseException], str] = {
    ssl.SSLCertVerificationError: f"{_UNREACHABLE}its certificate is not good (expired, for another host, or of an unknown "
    "authority)",
    ssl.SSLError: f"{_UNREACHABLE}no TLS connection, so its address may begin with http:// instead of https://",
    socket.gaierror: f"{_UNREACHABLE}there is no host of that name: check --engine",
    httpx.ConnectTimeout: f"{_UNREACHABLE}it took no connection within the time: check the host and port of --engine",
    httpx.ConnectError: f"{_UNREACHABLE}check the host and port of --engine",
    httpx.RemoteProtocolError: "broke the connection off, or does not speak HTTP there: look into its log",
    httpx.ReadError: "broke the connection off: look into its log",
    httpx.WriteError: "broke the connection off: look into its log",
    httpx.TimeoutException: "did not take the request in time: is it overloaded?",
}


class ServerError(Exception):
    """A server could not give an answer; the message says why."""

    def __init__(
        self, text: str, *, refused: bool = False, retry_after: float | None = None, unreachable: bool = False
    ) -> None:
        super().__init__(text)
        self.unreachable = unreachable
        """There was no connection: the server is down until a health check succeeds."""
        self.refused = refused
        """The server understood the request and rejects it: fewer fields may help."""
        self.retry_after = retry_after
        """Seconds after which it may accept the request; None where waiting does not help."""


def status_text(status: int, message: str) -> str:
    """Clause for a status other than 2xx; `message` is the server's own, which may be empty."""
    if status in (401, 403):
        return "refuses the key: set QLORA_CHAT_ENGINE_KEY to one that it accepts"
    if 300 <= status < 400:
        return f"answers with a redirect ({status}), which is never followed: use the address that it leads to"
    answered = f"answered {status}{f' ({message})' if message else ''}"
    if message and status not in _NEXT_STEPS:
        return answered
    unknown = "its log says why" if status >= 500 else "check that --engine is an OpenAI-compatible server"
    return f"{answered}; {_NEXT_STEPS.get(status, unknown)}"


def failure_text(problem: httpx.HTTPError) -> str:
    """Clause for a request that ended without an answer."""
    found = causes(problem)
    for cause in found:
        if isinstance(cause, OSError) and (clause := _ERRNOS.get(cause.errno or 0)):
            return clause
    for kind, clause in _CLASSES.items():
        if any(isinstance(each, kind) for each in found):
            return clause
    return "could not be asked: check the address of --engine"
