"""Request bodies, read whole within a size and a time; and the refusal of a request.

Scope: bytes. Knows no format, no path and no server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import Receive

CLOSE = {"connection": "close"}
"""The rest of a refused body is not read, so the connection cannot be used again."""


class Refused(Exception):
    """A request that goes no further: HTTP status, message for the client, headers of the response."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})


@dataclass(frozen=True)
class BodyLimit:
    """Largest size in bytes, and longest time in seconds for all of it to arrive."""

    size: int
    seconds: float


async def read_body(receive: Receive, headers: Headers, limit: BodyLimit, take: Callable[[int], bool]) -> bytes:
    """The whole body. Refused with 413 (too large), 408 (too slow), 400 (cut off) or 503 (too many arrive at once:
    `take` counts the bytes of all).

    Bytes are counted as they come, so a chunked body without a length is limited too.
    """
    too_large = Refused(413, f"The request is larger than {limit.size:,} bytes. Shorten it, or send it in parts.", CLOSE)
    length = headers.get("content-length", "0")
    if length.isdigit() and int(length[:20]) > limit.size:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limit.seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refused(400, "The request was cut off.")
                chunk = message.get("body", b"")
                if not take(len(chunk)):
                    raise Refused(503, "Too much is being sent at once. Try again in a moment.", {"retry-after": "1", **CLOSE})
                body += chunk
                if len(body) > limit.size:
                    raise too_large
                if not message.get("more_body"):
                    return bytes(body)
    except TimeoutError:
        raise Refused(408, "The request took too long to arrive.", CLOSE) from None
