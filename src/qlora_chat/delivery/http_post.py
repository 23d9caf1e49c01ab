"""One POST of a record's bytes to the receiver, and the result of its response.

Scope: HTTP. Posts as requests.post(url, json=...) would, but without proxies and .netrc from the environment, without following
redirects, and with a time limit on the whole attempt. Knows no queue.
"""

from __future__ import annotations

import socket
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection

from qlora_chat.delivery.connect import connect
from qlora_chat.delivery.reasons import failure_reason, status_reason
from qlora_chat.delivery.signing import IDEMPOTENCY_HEADER, sign
from qlora_chat.history import OutboxRecord
from qlora_chat.settings import LogSettings

CONNECT_SECONDS, READ_SECONDS = 4.0, 5.0
ATTEMPT_SECONDS = 9.5
"""Limit of a whole attempt: a receiver that sends its response byte by byte never exceeds READ_SECONDS."""
MAX_RETRY_AFTER_SECONDS = 3600.0
REJECTIONS = frozenset({400, 409, 411, 413, 414, 415, 422})
"""Statuses that concern the record itself, so that a retry cannot succeed. All others may concern the receiver, its address or
the token, and are retried: otherwise a wrong token would turn the whole queue into dead letters."""


@dataclass(frozen=True)
class PostResult:
    """Result of an attempt."""

    outcome: Literal["sent", "retry", "rejected"]
    reason: str = ""
    """Short; quotes neither the record nor the URL."""
    retry_after: float | None = None
    """Seconds, from the receiver's Retry-After header."""
    receiver_is_down: bool = False
    """The receiver did not respond, or asked for a pause: other records would fail as well."""


class Poster:
    """Posts to one URL over one session. Call it from one thread."""

    def __init__(self, settings: LogSettings) -> None:
        assert settings.url, "LOGGING_URL is not set"
        self._url, self._secret = settings.url, settings.secret
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy sees a conversation, and .netrc sends no password
        self._session.verify = str(settings.certificates) if settings.certificates else True
        self._adapter = _Adapter()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, self._adapter)
        self._headers = {"Content-Type": "application/json"}
        if settings.token:
            self._headers["Authorization"] = f"Bearer {settings.token}"

    def __call__(self, outgoing: OutboxRecord) -> PostResult:
        """Post a record once; never raises."""
        headers = {**self._headers, IDEMPOTENCY_HEADER: outgoing.id}
        if self._secret:
            headers |= sign(self._secret, outgoing.id, outgoing.body)
        timed_out = threading.Event()
        timer = threading.Timer(ATTEMPT_SECONDS, self._time_out, (timed_out,))
        timer.daemon = True
        timer.start()
        try:
            with self._session.post(
                self._url,
                data=outgoing.body,
                headers=headers,
                timeout=(CONNECT_SECONDS, READ_SECONDS),
                allow_redirects=False,  # a redirect would lose the body, or send it to another host
                stream=True,  # the status is enough; a slow body would delay the next record
            ) as response:
                if timed_out.is_set():  # the status may have arrived, but not the end of the headers
                    return PostResult("retry", "no complete response in time", receiver_is_down=True)
                return _result(response)
        except Exception as problem:
            return PostResult("retry", failure_reason(problem), receiver_is_down=True)
        finally:
            timer.cancel()

    def _time_out(self, timed_out: threading.Event) -> None:
        timed_out.set()
        self.abort()

    def abort(self) -> None:
        """End the attempt of another thread; its record may or may not have arrived."""
        self._adapter.shut_down_connections()

    def close(self) -> None:
        """Close the connection."""
        self._session.close()


def _result(response: requests.Response) -> PostResult:
    status = response.status_code
    if 200 <= status < 300:
        if response.headers.get("Content-Length") == "0" or status == 204:
            _ = response.content  # nothing is left to read, so the connection can be reused
        return PostResult("sent")
    reason = status_reason(status, response.headers.get("Location"))
    if status in REJECTIONS:
        return PostResult("rejected", reason)
    seconds = retry_after(response.headers.get("Retry-After"))
    return PostResult("retry", reason, seconds, receiver_is_down=seconds is not None and status in (429, 503))


def retry_after(value: str | None, now: float | None = None) -> float | None:
    """Seconds of a Retry-After header, which is a number or a date; None if it is missing or invalid."""
    if value is None:
        return None
    if value.strip().isascii() and value.strip().isdigit():
        return min(float(value.strip()[:9]), MAX_RETRY_AFTER_SECONDS)
    try:
        when = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    moment = time.time() if now is None else now
    return min(max(0.0, when.timestamp() - datetime.fromtimestamp(moment, UTC).timestamp()), MAX_RETRY_AFTER_SECONDS)


def _socket(connection: HTTPConnection) -> socket.socket:
    """Socket of a urllib3 connection, with one time limit for name resolution and all addresses."""
    return connect(
        connection.host, connection.port, CONNECT_SECONDS,
        source_address=connection.source_address, socket_options=connection.socket_options,
    )  # fmt: skip


class _Adapter(HTTPAdapter):
    """HTTPAdapter that tracks its open connections, so that another thread can end an attempt."""

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **arguments: Any) -> None:
        """Create the pool manager, whose connections register themselves in `_open`."""
        self._open: weakref.WeakSet[HTTPConnection] = weakref.WeakSet()
        open_connections = self._open

        class Tracked(HTTPConnection):
            def connect(self) -> None:
                open_connections.add(self)
                super().connect()

            def _new_conn(self) -> socket.socket:
                return _socket(self)

        class Secure(Tracked, HTTPSConnection): ...

        class PlainPool(HTTPConnectionPool):
            ConnectionCls = Tracked  # type: ignore[assignment]

        class SecurePool(HTTPSConnectionPool):
            ConnectionCls = Secure  # type: ignore[assignment]

        self.poolmanager = PoolManager(num_pools=connections, maxsize=maxsize, block=block, **arguments)
        self.poolmanager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}

    def shut_down_connections(self) -> None:
        """Shut down every open connection, which ends whatever waits for it."""
        for connection in list(self._open):
            sock: socket.socket | None = getattr(connection, "sock", None)
            if sock is not None:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
