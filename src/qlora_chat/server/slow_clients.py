"""Connections that are closed when their client is slow to send a request or to read a response, or when there are too many.

Scope: one connection; uvicorn limits only idle ones. Slow bodies are refused by request_body.py, and connection_limits.py says
which connection is one too many.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from qlora_chat.server.connection_limits import ConnectionLimits, client_address

HEAD_S = 10.0
"""Longest time from connecting, or from the first byte of a further request, to the end of its head."""
READ_STALL_S = 10.0
"""Longest time that sent data may wait without the client reading any of it."""
REFUSED_BODY_S = 2.0
"""Longest time that the rest of a body may take to come whose request has been answered."""
CHECK_INTERVAL_S = 1.0
MOST_HEAD_BYTES = 64 * 1024
FREE_PIECES, BYTES_PER_PIECE = 1000, 256
"""A body may come in so many chunks, and one more for so many bytes: each takes as long to parse as kilobytes in one."""
UNACKED, ACKED, NOT_SENT = 24, 120, 144
"""Offsets in Linux' struct tcp_info: packets in flight (u32), bytes acknowledged (u64), bytes not sent yet (u32)."""


class _TooManyPieces(Exception):
    """A body comes in tiny chunks."""


class _Parser(h11.Connection):
    """h11's parser, which gives up on bodies in tiny chunks."""

    _pieces = 0
    _bytes = 0

    def next_event(self) -> Any:
        """The next event. _TooManyPieces for a body that is parsed for longer than its size explains."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._pieces = self._bytes = 0
        elif isinstance(event, h11.Data):
            self._pieces += 1
            self._bytes += len(event.data)
            if self._pieces > FREE_PIECES + self._bytes // BYTES_PER_PIECE:
                raise _TooManyPieces
        return event


class TimedConnection(H11Protocol):
    """Uvicorn's HTTP/1.1 connection with these limits."""

    _address = ""
    _head_timer: asyncio.TimerHandle | None = None
    _rest_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None
    _check_timer: asyncio.TimerHandle | None = None
    _acked = 0
    _acked_at = 0.0

    def __init__(self, *args: Any, limits: ConnectionLimits, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conn = _Parser(h11.SERVER, MOST_HEAD_BYTES)
        self._limits = limits

    @property
    def idle(self) -> bool:
        """True if no request is being answered: none has come, or half a one, or the last is answered."""
        return self.cycle is None or self.cycle.response_complete

    def drop(self) -> None:
        """Close it now."""
        self.transport.abort()

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._address = client_address(self.client)
        if not self._limits.admit(self, self._address):
            transport.abort()
            return
        self.loop.set_exception_handler(self._limits.handle_full_table)  # uvicorn has no place for it before this
        self._time_head()
        self._check_progress()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._time_head()

    def handle_events(self) -> None:
        """Handle what has arrived. Close the connection of a client that sends a body in tiny chunks."""
        try:
            super().handle_events()
        except _TooManyPieces:
            self.transport.abort()

    def on_response_complete(self) -> None:
        """Let the rest of a body come that nobody reads, but not for long."""
        if self.conn.their_state is h11.SEND_BODY:
            self._rest_timer = self._rest_timer or self.loop.call_later(REFUSED_BODY_S, self.transport.abort)
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall_timer = self._stall_timer or self.loop.call_later(READ_STALL_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer:
            self._stall_timer.cancel()
            self._stall_timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._limits.release(self, self._address)
        for timer in (self._head_timer, self._rest_timer, self._stall_timer, self._check_timer):
            if timer:
                timer.cancel()
        super().connection_lost(exc)

    def _check_progress(self) -> None:
        """Close the connection of a client that reads nothing. Uvicorn's own buffer fills up only after the kernel's, which
        takes megabytes: more than most responses have."""
        progress = _progress(self.transport.get_extra_info("socket"))
        if progress is None:
            return
        acked, has_unread = progress
        if acked != self._acked or not has_unread:
            self._acked, self._acked_at = acked, self.loop.time()
        elif self.loop.time() - self._acked_at >= READ_STALL_S:
            self.transport.abort()
            return
        self._check_timer = self.loop.call_later(CHECK_INTERVAL_S, self._check_progress)

    def _time_head(self) -> None:
        """Start the timer while no head is complete, stop it once one is. Idle connections are uvicorn's keep-alive timer's."""
        if self._rest_timer and self.conn.their_state is not h11.SEND_BODY:
            self._rest_timer.cancel()
            self._rest_timer = None
        if self.idle:
            self._head_timer = self._head_timer or self.loop.call_later(HEAD_S, self.transport.abort)
        elif self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None


def _progress(connection: Any) -> tuple[int, bool] | None:
    """Bytes that the client acknowledged so far, and whether it has more to read; None if the system cannot say."""
    if connection is None or not hasattr(socket, "TCP_INFO"):  # Linux only: elsewhere uvicorn's full buffer must do
        return None
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, NOT_SENT + 4)
        acked, in_flight = struct.unpack_from("Q", info, ACKED)[0], struct.unpack_from("I", info, UNACKED)[0]
        return acked, bool(in_flight or struct.unpack_from("I", info, NOT_SENT)[0])
    except (OSError, struct.error):  # not TCP, closed, or a kernel before 4.6
        return None
