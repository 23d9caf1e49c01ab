"""A connection to a host by its name, within a time: resolving the name included.

Scope: names, addresses and sockets. The system's resolver cannot be interrupted and may take half a minute where no name
server answers, so it is asked in a thread that is left behind. Knows no HTTP.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

from urllib3.util.connection import create_connection


def connect(host: str, port: int, seconds: float, **options: Any) -> socket.socket:
    """A connected socket; every address of the host is tried, all within `seconds`. OSError where none answers in time.

    `options` are create_connection's: source_address, socket_options.
    """
    ends = time.monotonic() + seconds
    problem: OSError = TimeoutError(f"no address of {host} answered within {seconds} s")
    for address in _addresses(host, port, seconds):
        left = ends - time.monotonic()
        if left <= 0:
            break
        try:
            connected = create_connection((address, port), timeout=left, **options)
        except OSError as refused:
            problem = refused
        else:
            return connected
    raise problem


def _addresses(host: str, port: int, seconds: float) -> Sequence[str]:
    """A host's addresses as numbers, in the resolver's order."""
    found: list[str] = []
    problems: list[OSError] = []

    def ask() -> None:
        try:
            found.extend(str(each[4][0]) for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError as problem:
            problems.append(problem)

    asking = threading.Thread(target=ask, name="qlora-chat-resolve", daemon=True)
    asking.start()
    asking.join(seconds)
    if asking.is_alive():
        raise TimeoutError(f"the name {host} was not resolved within {seconds} s")
    if problems:
        raise problems[0]
    return list(dict.fromkeys(found))
