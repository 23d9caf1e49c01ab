"""One POST of a record's bytes to the receiver, and the result of its response.

Scope: HTTP. No proxy or .netrc of the environment is used, no redirect is followed, and the whole attempt has a time limit.
Knows no queue.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Literal

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


class Poster:
    """Posts to one URL over connections that stay open. Call it from one thread; `abort` may be called from another."""

    def __init__(self, settings: LogSettings) -> None:
        assert settings.url, "LOGGING_URL is not set"
        self._url, self._secret = settings.url, settings.secret
        authorities = ssl.create_default_context(cafile=settings.certificates) if settings.certificates else True
        headers = {"Authorization": f"Bearer {settings.token}"} if settings.token else {}
        # with trust_env, a proxy would see conversations, and .netrc would send a password
        self._client = httpx.AsyncClient(verify=authorities, headers=headers, trust_env=False)
        self._loop = _EventLoop()
        self._attempt: asyncio.Task[PostResult] | None = None

    def __call__(self, outgoing: OutboxRecord) -> PostResult:
        """Post a record once; never raises."""
        try:
            self._attempt = self._loop.create_task(self._post(outgoing))
            return self._loop.run_until_complete(asyncio.wait_for(self._attempt, ATTEMPT_SECONDS))
        except (Exception, asyncio.CancelledError) as problem:
            return PostResult("retry", failure_reason(problem), receiver_is_down=True)

    async def _post(self, outgoing: OutboxRecord) -> PostResult:
        body = outgoing.body
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), IDEMPOTENCY_HEADER: outgoing.id}
        if self._secret:
            headers |= sign(self._secret, outgoing.id, body)
        timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
        posting = self._client.stream("POST", self._url, content=_parts(body), headers=headers, timeout=timeout)
        async with posting as response:  # the status is enough; a slow body would delay the next record
            if response.headers.get("Content-Length") == "0" or response.status_code == 204:
                await response.aread()  # nothing is left to read, so the connection can be used again
            return _result(response)

    def abort(self) -> None:
        """End the attempt of another thread; its record may or may not have arrived."""
        if self._attempt:
            self._loop.call_soon_threadsafe(self._attempt.cancel)

    def close(self) -> None:
        """Close the connections, when no attempt is under way."""
        self._loop.run_until_complete(self._client.aclose())
        self._loop.close()


async def _parts(body: bytes) -> AsyncIterator[bytes]:
    """A body in parts: copies of a long one as a whole would hold up the chat's threads."""
    for begin in range(0, len(body), PART_BYTES):
        yield body[begin : begin + PART_BYTES]


class _EventLoop(asyncio.SelectorEventLoop):
    """An event loop that resolves names in daemon threads.

    The system's resolver cannot be interrupted and may take half a minute if no name server answers. An attempt does not wait
    for it beyond its limit, and with such threads neither does the end of the program.
    """

    async def getaddrinfo(self, *host_and_port: Any, **options: Any) -> list[Any]:
        """As socket.getaddrinfo."""
        found: Future[list[Any]] = Future()

        def resolve() -> None:
            found.set_running_or_notify_cancel()
            try:
                found.set_result(socket.getaddrinfo(*host_and_port, **options))
            except OSError as problem:
                found.set_exception(problem)

        threading.Thread(target=resolve, name="qlora-chat-resolve", daemon=True).start()
        return await asyncio.wrap_future(found)


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
