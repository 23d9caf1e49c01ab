"""Connections that are closed when their client dawdles: in sending a request, or in reading an answer.

Scope: times one connection; uvicorn has limits of its own only for idle ones. A body that comes too slowly is the guard's.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
"""From connecting, or the first byte of a further request, to the end of its headers."""
READING_SECONDS = 10.0
"""How long what was sent may lie unread, once the buffers between are full."""


class TimedConnection(H11Protocol):
    """Uvicorn's HTTP/1.1 with both limits."""

    _head_timer: asyncio.TimerHandle | None = None
    _reading_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._time_head()

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
        if self._reading_timer:
            self._reading_timer.cancel()
        super().connection_lost(exc)

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
