"""Threads wake the event loop: at once for what cannot wait, at most once per interval for the rest."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from qlora_chat.engines import Finish, Piece
from qlora_chat.serving.stream_reader import StreamReader, Wakeup

AN_HOUR = 3600.0


def run(steps: Coroutine[Any, Any, None]) -> None:
    """Run to the end; a coroutine that nobody wakes fails the test instead of hanging it."""

    async def bounded() -> None:
        async with asyncio.timeout(60):
            await steps

    asyncio.run(bounded())


def notify_in_thread(wakeup: Wakeup, *, now: bool = False) -> None:
    threading.Thread(target=wakeup.notify, kwargs={"now": now}).start()


def test_another_thread_wakes_a_waiting_coroutine() -> None:
    async def steps() -> None:
        wakeup = Wakeup(AN_HOUR)
        notify_in_thread(wakeup)
        await wakeup.wait()

    run(steps())


def test_within_an_interval_only_an_urgent_notification_wakes() -> None:
    async def steps() -> None:
        wakeup = Wakeup(AN_HOUR)
        wakeup.start_interval()
        notify_in_thread(wakeup)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await wakeup.wait()
        notify_in_thread(wakeup, now=True)
        await wakeup.wait()
        wakeup.close()

    run(steps())


def test_a_held_back_notification_wakes_when_the_interval_is_over() -> None:
    async def steps() -> None:
        wakeup = Wakeup(0.05)
        wakeup.start_interval()
        notify_in_thread(wakeup)
        await wakeup.wait()

    run(steps())


def test_notifying_a_loop_that_has_ended_is_no_error() -> None:
    wakeups: list[Wakeup] = []

    async def steps() -> None:
        wakeups.append(Wakeup(AN_HOUR))

    run(steps())
    wakeups[0].notify(now=True)


class ScriptedStream:
    """Yields its items, then waits to be cancelled if it has no end."""

    def __init__(self, *items: Piece | Exception) -> None:
        self._items = items
        self.cancelled = threading.Event()

    def __iter__(self) -> Any:
        for item in self._items:
            if isinstance(item, Exception):
                raise item
            yield item
        self.cancelled.wait(60)

    def cancel(self) -> None:
        self.cancelled.set()

    def update(self, sampling: Any) -> None:
        raise NotImplementedError


async def connected() -> Any:
    await asyncio.Event().wait()


async def disconnected() -> Any:
    return {"type": "http.disconnect"}


END = Piece("", None, Finish("stop", 1, 0, 1, None, None))


def test_pieces_and_errors_of_several_streams_arrive_with_their_index() -> None:
    problem = RuntimeError("broken")

    async def steps() -> None:
        first, second = ScriptedStream(Piece("a", 1), END), ScriptedStream(Piece("b", 2), problem)
        for each in (first, second):
            each.cancelled.set()
        reader = StreamReader([first, second], connected, AN_HOUR)
        events = []
        while reader.live:
            events += await reader.next()
        reader.close()
        assert [item for index, item in events if index == 0] == [Piece("a", 1), END]
        assert [item for index, item in events if index == 1] == [Piece("b", 2), problem]

    run(steps())


def test_a_client_that_disconnects_and_the_time_limit_cancel_the_streams() -> None:
    async def steps() -> None:
        for receive, time_limit_s in ((disconnected, AN_HOUR), (connected, 0.01)):
            stream = ScriptedStream(Piece("a", 1))
            reader = StreamReader([stream], receive, time_limit_s)
            assert await asyncio.to_thread(stream.cancelled.wait, 60)
            assert (reader.disconnected, reader.timed_out) == (receive is disconnected, receive is connected)
            reader.close()

    run(steps())
