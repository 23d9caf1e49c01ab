"""Answers that threads read, handed to the event loop.

Scope: the hand-over, the time limit, and ending everything when the client has left. Knows no JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Sequence

from starlette.types import Receive

from qlora_chat.engines import Piece, Stream

Event = tuple[int, Piece | Exception]
"""Which of the streams, and what came."""
BETWEEN_SECONDS = 0.02
"""At least this long from one hand-over to the next, but for a beginning, an end or an error. Each token waking the loop and
being sent alone takes more of the processor than all else that is done with it; nobody reads faster."""


class Reading:
    """Reads streams to their ends. Make it in the event loop; `next` until `live` is 0."""

    def __init__(self, streams: Sequence[Stream], receive: Receive, seconds: float) -> None:
        self.timed_out = False
        """Whether the time limit ended it."""
        self.gone = False
        """Whether the client has left."""
        self.live = len(streams)
        self._streams = streams
        self._events: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._told = False
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._waking: asyncio.TimerHandle | None = None
        self._limit = self._loop.call_later(seconds, self._time_out)
        self._watching = asyncio.create_task(self._watch(receive))
        for index, stream in enumerate(streams):
            threading.Thread(target=self._read, args=(index, stream), name="qlora-chat-read", daemon=True).start()

    async def next(self) -> list[Event]:
        """What has come since the last call; waits for something to come, and for BETWEEN_SECONDS to be over."""
        events: list[Event] = []
        while not events:
            await self._arrived.wait()
            self._arrived.clear()
            with self._lock:
                self._told = False
                events = [*self._events]
                self._events.clear()
        self._not_before = self._loop.time() + BETWEEN_SECONDS
        self.live -= sum(isinstance(each, Exception) or each.finish is not None for _, each in events)
        return events

    def cancel(self) -> None:
        """End every answer at its next token."""
        for stream in self._streams:
            stream.cancel()

    def close(self) -> None:
        """No more is wanted. Ends what still runs."""
        self.cancel()
        self._limit.cancel()
        self._watching.cancel()
        if self._waking:
            self._waking.cancel()

    def _time_out(self) -> None:
        self.timed_out = True
        self.cancel()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        self.cancel()

    def _read(self, index: int, stream: Stream) -> None:
        last: Piece | Exception | None = None
        try:
            for piece in stream:
                if piece.finish is None:
                    self._put(index, piece)
                else:
                    last = piece  # handed over once the stream has closed the answer in the history
        except Exception as problem:
            last = problem
        if last is not None:
            self._put(index, last)

    def _put(self, index: int, came: Piece | Exception) -> None:
        """Wake the loop once for all that comes before it looks."""
        at_once = isinstance(came, Exception) or came.finish is not None
        with self._lock:
            self._events.append((index, came))
            if self._told and not at_once:
                return
            self._told = True
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._arrived.set if at_once else self._wake)

    def _wake(self) -> None:
        wait = self._not_before - self._loop.time()
        if wait <= 0:
            self._arrived.set()
        else:
            self._waking = self._loop.call_later(wait, self._arrived.set)
