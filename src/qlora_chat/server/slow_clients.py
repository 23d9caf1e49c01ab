"""Connections that are closed when their client dawdles: in sending a request, or in reading an answer.

Scope: times one connection; uvicorn has limits of its own only for idle ones. A body that comes too slowly is the guard's.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
"""From connecting, or the first byte of a further request, to the end of its headers."""
READING_SECONDS = 10.0
"""How long what was sent may lie here without the client taking any of it."""
LOOK_SECONDS = 1.0
"""From one look at what a client has taken to the next."""
UNACKED, ACKED, NOT_SENT = 24, 120, 144
"""Where Linux' struct tcp_info has packets under way (u32), bytes taken (u64) and bytes that wait here (u32)."""


class TimedConnection(H11Protocol):
    """Uvicorn's HTTP/1.1 with both limits."""

    _head_timer: asyncio.TimerHandle | None = None
    _reading_timer: asyncio.TimerHandle | None = None
    _look_timer: asyncio.TimerHandle | None = None
    _taken = 0
    _since = 0.0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._time_head()
        self._look()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._time_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading_timer = self._reading_timer or self.loop.call_later(READING_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reading_timer:
            self._reading_timer.cancel()
            self._reading_timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timing_head()
        for timer in (self._reading_timer, self._look_timer):
            if timer:
                timer.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        """A client that takes nothing is let go of; uvicorn's own buffer would notice only when the kernel's is full, which
        takes megabytes: more than most answers have."""
        progress = _progress(self.transport.get_extra_info("socket"))
        if progress is None:
            return
        taken, more_waits = progress
        if taken != self._taken or not more_waits:
            self._taken, self._since = taken, self.loop.time()
        elif self.loop.time() - self._since >= READING_SECONDS:
            self.transport.abort()
            return
        self._look_timer = self.loop.call_later(LOOK_SECONDS, self._look)

    def _time_head(self) -> None:
        """Time runs while no request is complete enough to be answered. Idle between requests is another timer's."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timing_head()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _stop_timing_head(self) -> None:
        if self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None


def _progress(connection: Any) -> tuple[int, bool] | None:
    """Bytes that the client has taken so far, and whether more wait for it; None where the system does not tell."""
    if connection is None or not hasattr(socket, "TCP_INFO"):  # Linux alone: elsewhere a full buffer has to do
        return None
    try:
        told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, NOT_SENT + 4)
        taken, under_way = struct.unpack_from("Q", told, ACKED)[0], struct.unpack_from("I", told, UNACKED)[0]
        return taken, bool(under_way or struct.unpack_from("I", told, NOT_SENT)[0])
    except (OSError, struct.error):  # not TCP, closed, or a kernel before 4.6
        return None
