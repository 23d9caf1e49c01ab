"""Connecting to a host by name within a time limit that includes name resolution.

Scope: names, addresses and sockets. The system's resolver cannot be interrupted and may take half a minute if no name server
answers, so it runs in a thread that is abandoned at the limit. Knows no HTTP.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

from urllib3.util.connection import create_connection


def connect(host: str, port: int, seconds: float, **options: Any) -> socket.socket:
    """Connected socket, after trying every address of the host within `seconds`. OSError if none answers in time.

    `options` are create_connection's: source_address, socket_options.
    """
    deadline = time.monotonic() + seconds
    problem: OSError = TimeoutError(f"no address of {host} answered within {seconds} s")
    for address in _addresses(host, port, seconds):
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            break
        try:
            return create_connection((address, port), timeout=remaining, **options)
        except OSError as refusal:
            problem = refusal
    raise problem


def _addresses(host: str, port: int, seconds: float) -> Sequence[str]:
    """Numeric addresses of a host, in the resolver's order. OSError if it has none or they are not found in time."""
    addresses: list[str] = []
    problems: list[OSError] = []

    def resolve() -> None:
        try:
            addresses.extend(str(each[4][0]) for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError as problem:
            problems.append(problem)

    resolver = threading.Thread(target=resolve, name="qlora-chat-resolve", daemon=True)
    resolver.start()
    resolver.join(seconds)
    if resolver.is_alive():
        raise TimeoutError(f"the name {host} was not resolved within {seconds} s")
    if problems:
        raise problems[0]
    return list(dict.fromkeys(addresses))
