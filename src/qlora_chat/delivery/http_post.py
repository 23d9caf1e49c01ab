"""One POST: the stored bytes to the receiver, and what its answer means.

Scope: HTTP. `requests` posts as requests.post(url, json=...) would, without what that leaves open: no proxy or .netrc of the
user's surroundings, no redirect followed, certificates checked, an end to every try. Knows no queue.
"""

from __future__ import annotations

import socket
import threading
import time
import weakref
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection

from qlora_chat.delivery.connect import connect
from qlora_chat.delivery.signing import IDEMPOTENCY_HEADER, sign
from qlora_chat.history import OutboxRecord
from qlora_chat.settings import LogSettings

CONNECT_SECONDS, ANSWER_SECONDS = 4.0, 5.0
TRY_SECONDS = 9.5
"""Whatever a receiver does, a try ends by then: one that drips its answer keeps every single wait short."""
LONGEST_WAIT_SECONDS = 3600.0
"""Most of a Retry-After that is obeyed."""
REFUSALS = frozenset({400, 409, 411, 413, 414, 415, 422})
"""Answers about the record itself, which no later try can change. Others may be about the receiver, its address or our
token: those are tried again, since setting the whole queue aside would lose it."""


@dataclass(frozen=True)
class Verdict:
    """What became of a try."""

    outcome: Literal["sent", "later", "refused"]
    reason: str = ""
    """Short, without words of the record or the address."""
    wait: float | None = None
    """Seconds that the receiver asks for."""
    receiver_is_down: bool = False
    """Nobody answered, or the receiver asks to be left alone: other records would fare no better."""


class Poster:
    """Posts to one address over one session. Call it from one thread."""

    def __init__(self, settings: LogSettings) -> None:
        assert settings.url, "a poster needs an address"
        self._url, self._secret = settings.url, settings.secret
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy and no .netrc gets to see a conversation
        self._session.verify = str(settings.certificates) if settings.certificates else True
        self._adapter = _Adapter()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, self._adapter)
        self._headers = {"Content-Type": "application/json"}
        if settings.token:
            self._headers["Authorization"] = f"Bearer {settings.token}"

    def __call__(self, outgoing: OutboxRecord) -> Verdict:
        """Try once."""
        headers = {**self._headers, IDEMPOTENCY_HEADER: outgoing.id}
        if self._secret:
            headers |= sign(self._secret, outgoing.id, outgoing.body)
        overdue = threading.Event()
        deadline = threading.Timer(TRY_SECONDS, self._hang_up, (overdue,))
        deadline.daemon = True
        deadline.start()
        try:
            with self._session.post(
                self._url,
                data=outgoing.body,
                headers=headers,
                timeout=(CONNECT_SECONDS, ANSWER_SECONDS),
                allow_redirects=False,  # following one would lose the body, or hand it to another host
                stream=True,  # the status is enough; a body that drips in would hold up the next record
            ) as answer:
                if overdue.is_set():  # a status may have come, but not the end of the headers
                    return Verdict("later", "no whole answer in time", receiver_is_down=True)
                return _verdict(answer)
        except Exception as problem:
            return Verdict("later", _kind(problem), receiver_is_down=True)
        finally:
            deadline.cancel()

    def _hang_up(self, overdue: threading.Event) -> None:
        overdue.set()
        self.hang_up()

    def hang_up(self) -> None:
        """End the try that another thread is at; its record may or may not have arrived."""
        self._adapter.hang_up()

    def close(self) -> None:
        """Let go of the connection."""
        self._session.close()


def _verdict(answer: requests.Response) -> Verdict:
    status = answer.status_code
    reason = f"status {status}"
    if 200 <= status < 300:
        if answer.headers.get("Content-Length") == "0" or status == 204:
            _ = answer.content  # nothing is left to read, and the connection can serve the next record
        return Verdict("sent")
    if status in REFUSALS:
        return Verdict("refused", reason)
    wait = retry_after(answer.headers.get("Retry-After"))
    return Verdict("later", reason, wait, receiver_is_down=wait is not None and status in (429, 503))


def retry_after(value: str | None, now: float | None = None) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or a date; None where it says nothing that can be read."""
    if value is None:
        return None
    if value.strip().isascii() and value.strip().isdigit():
        return min(float(value.strip()[:9]), LONGEST_WAIT_SECONDS)
    try:
        when = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    moment = time.time() if now is None else now
    return min(max(0.0, when.timestamp() - datetime.fromtimestamp(moment, UTC).timestamp()), LONGEST_WAIT_SECONDS)


def _kind(problem: Exception) -> str:
    """The problem's class, and for TLS what was wrong, which names hosts and no records."""
    if isinstance(problem, requests.exceptions.SSLError):
        return "the receiver's certificate is not good (expired, for another host, or of an unknown authority)"
    return type(problem).__name__


def _socket(connection: HTTPConnection) -> socket.socket:
    """What urllib3 makes, with an end to resolving the name and to trying one address after another."""
    return connect(
        connection.host, connection.port, CONNECT_SECONDS,
        source_address=connection.source_address, socket_options=connection.socket_options,
    )  # fmt: skip


class _Adapter(HTTPAdapter):
    """Knows the connections that are open, so that another thread can end a try."""

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **arguments: Any) -> None:
        """The pool manager that requests makes, with connections that are known here."""
        self._open: weakref.WeakSet[HTTPConnection] = weakref.WeakSet()
        noted = self._open

        class Plain(HTTPConnection):
            def connect(self) -> None:
                noted.add(self)
                super().connect()

            def _new_conn(self) -> socket.socket:
                return _socket(self)

        class Secure(HTTPSConnection):
            def connect(self) -> None:
                noted.add(self)
                super().connect()

            def _new_conn(self) -> socket.socket:
                return _socket(self)

        class PlainPool(HTTPConnectionPool):
            ConnectionCls = Plain  # type: ignore[assignment]

        class SecurePool(HTTPSConnectionPool):
            ConnectionCls = Secure  # type: ignore[assignment]

        self.poolmanager = PoolManager(num_pools=connections, maxsize=maxsize, block=block, **arguments)
        self.poolmanager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}

    def hang_up(self) -> None:
        """Shut every open connection, whatever it is waiting for."""
        for connection in list(self._open):
            sock: socket.socket | None = getattr(connection, "sock", None)
            if sock is not None:
                try:
                    sock.shutdown(2)
                except OSError:
                    continue
