"""Streams that threads read, handed over to the event loop.

Scope: the hand-over, the time limit, and cancelling when the client disconnects. Knows no JSON and no page.
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
"""Index of the stream, and what it yielded or raised."""
HANDOVER_INTERVAL_S = 0.02
"""Shortest time between hand-overs, except for the first piece, an end or an error. Waking the loop and sending for every
single token costs more CPU than everything else that is done with it; nobody reads faster."""


class Wakeup:
    """Wakes a coroutine from other threads, at most once per interval. Create it in the event loop."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._notified = False
        self._not_before = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def notify(self, *, now: bool = False) -> None:
        """Wake the coroutine: `now`, or when the interval is over. Once suffices for all that happens before it runs."""
        if self._notified and not now:
            return
        self._notified = True
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._event.set if now else self._set_in_time)

    async def wait(self) -> None:
        """Wait for a notification. Read what other threads have written after this returns, not before."""
        await self._event.wait()
        self._event.clear()
        self._notified = False

    def start_interval(self) -> None:
        """Hold back notifications from now on for one interval."""
        self._not_before = self._loop.time() + self._interval_s

    def close(self) -> None:
        """Wake nobody any more."""
        if self._timer:
            self._timer.cancel()

    def _set_in_time(self) -> None:
        wait_s = self._not_before - self._loop.time()
        if wait_s <= 0:
            self._event.set()
        else:
            self._timer = self._loop.call_later(wait_s, self._event.set)


class StreamReader:
    """Reads streams to their ends, one thread each. Create it in the event loop; call `next` until `live` is 0."""

    def __init__(self, streams: Sequence[Stream], receive: Receive, time_limit_s: float) -> None:
        self.timed_out = False
        """True if the time limit ended it."""
        self.disconnected = False
        """True if the client has left."""
        self.live = len(streams)
        """Number of streams that have not ended."""
        self._streams = streams
        self._events: deque[Event] = deque()
        self._wakeup = Wakeup(HANDOVER_INTERVAL_S)
        self._limit = asyncio.get_running_loop().call_later(time_limit_s, self._time_out)
        self._watching = asyncio.create_task(self._watch_client(receive))
        for index, stream in enumerate(streams):
            threading.Thread(target=self._read, args=(index, stream), name="qlora-chat-read", daemon=True).start()

    async def next(self) -> list[Event]:
        """Everything since the last call; waits for something to come, and for the interval to be over."""
        events: list[Event] = []
        while not events:
            await self._wakeup.wait()
            while self._events:
                events.append(self._events.popleft())
        self._wakeup.start_interval()
        self.live -= sum(isinstance(each, Exception) or each.finish is not None for _, each in events)
        return events

    def close(self) -> None:
        """Stop reading; cancels what still runs."""
        self._cancel()
        self._limit.cancel()
        self._watching.cancel()
        self._wakeup.close()

    def _cancel(self) -> None:
        for stream in self._streams:
            stream.cancel()

    def _time_out(self) -> None:
        self.timed_out = True
        self._cancel()

    async def _watch_client(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.disconnected = True
        self._cancel()

    def _read(self, index: int, stream: Stream) -> None:
        last: Piece | Exception | None = None
        try:
            for piece in stream:
                if piece.finish is None:
                    self._events.append((index, piece))
                    self._wakeup.notify()
                else:
                    last = piece  # handed over once the stream has closed the answer in the history
        except Exception as problem:
            last = problem
        if last is not None:
            self._events.append((index, last))
            self._wakeup.notify(now=True)
