"""One POST of a record's bytes to the receiver, and the result of its response.

Scope: HTTP. No proxy or .netrc of the environment is used, no redirect is followed, and the whole attempt has a time limit.
Knows no queue.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Literal, TypeAlias

import httpx

from qlora_chat.delivery.reasons import failure_reason, status_reason
from qlora_chat.delivery.signing import IDEMPOTENCY_HEADER, sign
from qlora_chat.history import OutboxRecord
from qlora_chat.settings import LogSettings

CONNECT_SECONDS, READ_SECONDS = 4.0, 5.0
ATTEMPT_SECONDS = 9.5
"""Limit of a whole attempt: a receiver that sends its response byte by byte never exceeds READ_SECONDS."""
MAX_RETRY_AFTER_SECONDS = 3600.0
PART_BYTES = 64 * 1024
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


_Attempt: TypeAlias = Future[PostResult]


class Poster:
    """Posts to one URL over connections that stay open. Call it from one thread; `abort` may be called from another.

    Each attempt has a daemon thread, which is abandoned at the limit: the system's resolver cannot be interrupted and may take
    half a minute if no name server answers.
    """

    def __init__(self, settings: LogSettings) -> None:
        assert settings.url, "LOGGING_URL is not set"
        self._url, self._secret = settings.url, settings.secret
        authorities = ssl.create_default_context(cafile=settings.certificates) if settings.certificates else True
        headers = {"Authorization": f"Bearer {settings.token}"} if settings.token else {}
        # with trust_env, a proxy would see conversations, and .netrc would send a password
        self._client = httpx.Client(verify=authorities, headers=headers, trust_env=False)
        self._attempt = _Attempt()
        self._socket: socket.socket | None = None

    def __call__(self, outgoing: OutboxRecord) -> PostResult:
        """Post a record once; never raises."""
        self._attempt = attempt = _Attempt()
        try:
            threading.Thread(target=self._run, args=(outgoing, attempt), name="qlora-chat-post", daemon=True).start()
            return attempt.result(ATTEMPT_SECONDS)
        except Exception as problem:
            self.abort()
            return PostResult("retry", failure_reason(problem), receiver_is_down=True)

    def _run(self, outgoing: OutboxRecord, attempt: _Attempt) -> None:
        try:
            result = self._post(outgoing, attempt)
        except Exception as problem:
            result = PostResult("retry", failure_reason(problem), receiver_is_down=True)
        with suppress(InvalidStateError):  # the attempt has ended meanwhile
            attempt.set_result(result)

    def _post(self, outgoing: OutboxRecord, attempt: _Attempt) -> PostResult:
        body = outgoing.body
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), IDEMPOTENCY_HEADER: outgoing.id}
        if self._secret:
            headers |= sign(self._secret, outgoing.id, body)

        def note_socket(event: str, details: Mapping[str, Any]) -> None:
            if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
                if attempt.done():
                    raise TimeoutError  # nothing is sent any more
                self._socket = details["return_value"].get_extra_info("socket")

        timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
        with self._client.stream(
            "POST", self._url, content=_parts(body), headers=headers, timeout=timeout, extensions={"trace": note_socket}
        ) as response:  # the status is enough; a slow body would delay the next record
            if response.headers.get("Content-Length") == "0" or response.status_code == 204:
                response.read()  # nothing is left to read, so the connection can be used again
            return _result(response)

    def abort(self) -> None:
        """End the attempt of another thread; its record may or may not have arrived."""
        self._attempt.cancel()
        if self._socket:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _parts(body: bytes) -> Iterator[bytes]:
    """A body in parts: copies of a long one as a whole would hold up the chat's threads."""
    for begin in range(0, len(body), PART_BYTES):
        yield body[begin : begin + PART_BYTES]


def _result(response: httpx.Response) -> PostResult:
    status = response.status_code
    if 200 <= status < 300:
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
    return min(max(0.0, when.timestamp() - (time.time() if now is None else now)), MAX_RETRY_AFTER_SECONDS)
