"""Listening socket, address and uvicorn settings of every server in this program.

Scope: one port. Knows no routes, and of settings only the host and the port.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from qlora_chat.errors import UserError
from qlora_chat.server.connection_limits import ConnectionLimits
from qlora_chat.server.slow_clients import TimedConnection
from qlora_chat.settings import DEFAULT_PORT

PORTS_TRIED = 100
BACKLOG = 128
"""Connections that the system holds until they are accepted; asyncio accepts as many in a row."""
KEEP_ALIVE_S = 75
LOG_INTERVAL_S = 60.0
INVALID_REQUEST = "Invalid HTTP request received."
"""Uvicorn's line."""


class ServeError(UserError, RuntimeError):
    """A server cannot be started; the message says what to change."""


class _Seldom(logging.Filter):
    """Lets one line a minute pass about requests that are no HTTP, of which a client can send thousands a second."""

    _passed_at = -LOG_INTERVAL_S

    def filter(self, record: logging.LogRecord) -> bool:
        """True for any other line, and for the first of these in a minute."""
        if record.msg != INVALID_REQUEST:
            return True
        if time.monotonic() - self._passed_at < LOG_INTERVAL_S:
            return False
        self._passed_at = time.monotonic()
        return True


_INVALID_REQUESTS = _Seldom()


def listen(host: str, port: int | None) -> socket.socket:
    """Listening socket on the port; None takes 7860 or the next free one. ServeError if the port cannot be used."""
    if port is not None:
        return _listen(host, port)
    for candidate in range(DEFAULT_PORT, DEFAULT_PORT + PORTS_TRIED):
        with contextlib.suppress(ServeError):
            return _listen(host, candidate)
    return _listen(host, DEFAULT_PORT)


def url_of(listening: socket.socket, host: str, scheme: str = "http") -> str:
    """URL by which a client on this machine reaches the socket."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host).strip("[]")
    return f"{scheme}://{f'[{name}]' if ':' in name else name}:{listening.getsockname()[1]}"


def uvicorn_config(app: ASGIApp, *, shutdown_timeout_s: int, proxies: Sequence[str] = (), **options: Any) -> uvicorn.Config:
    """Settings of a server whose connections are limited in time and number; `shutdown_timeout_s` is how long they may take to
    finish. One of the trusted `proxies` may have any number. Forwarding headers are access_control.py's business.
    """
    config = uvicorn.Config(
        app,
        http=partial(TimedConnection, limits=ConnectionLimits.of_this_process(proxies)),  # type: ignore[arg-type]
        backlog=BACKLOG,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=shutdown_timeout_s,
        server_header=False,
        access_log=False,
        ws="none",
        **{"log_level": "warning", **options},
    )
    logging.getLogger("uvicorn.error").addFilter(_INVALID_REQUESTS)
    return config


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host.strip("[]"), port), family=family, backlog=BACKLOG)
    except OSError as problem:
        raise ServeError(
            f"cannot listen on {host} port {port} ({problem.strerror or problem}); choose another --port"
        ) from problem
    # Connections inherit it. asyncio sets it only on sockets whose protocol is named; without it, what follows the head of a
    # response waits 40 ms for the client's acknowledgement, on every connection that is reused.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening
