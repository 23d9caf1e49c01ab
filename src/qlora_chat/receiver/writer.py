"""Gathers what arrives while the disk is busy, so that many senders share one commit.

Scope: between the event loop and the store. A record's outcome is known when it is on disk, and not before.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from qlora_chat.receiver.records import Record
from qlora_chat.receiver.store import Outcome

MOST_TOGETHER = 200
"""Records a commit."""

_Waiting = tuple[Record, "asyncio.Future[Outcome]"]


class Writer:
    """Hands records to `keep` in the order they came, in a thread of its own, one batch at a time."""

    def __init__(self, keep: Callable[[Sequence[Record]], list[Outcome]]) -> None:
        self._keep = keep
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()

    async def add(self, record: Record) -> Outcome:
        """What became of the record, once it is on disk; raises what `keep` raised."""
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((record, outcome))
        return await outcome

    async def run(self) -> None:
        """Work until cancelled; a batch under way is finished first."""
        while True:
            batch = [await self._queue.get()]
            while len(batch) < MOST_TOGETHER and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            await asyncio.shield(asyncio.create_task(self._write(batch)))

    async def _write(self, batch: Sequence[_Waiting]) -> None:
        try:
            outcomes = await asyncio.to_thread(self._keep, [record for record, _ in batch])
        except Exception as problem:
            if len(batch) > 1:  # perhaps one record's fault: each by itself
                for each in batch:
                    await self._write([each])
                return
            _settle(batch[0][1], problem)
            return
        for (_, waiting), outcome in zip(batch, outcomes, strict=True):
            _settle(waiting, outcome)


def _settle(waiting: asyncio.Future[Outcome], result: Outcome | Exception) -> None:
    """Tell whoever waits; a client that has gone waits no more."""
    with contextlib.suppress(asyncio.InvalidStateError):
        if isinstance(result, Exception):
            waiting.set_exception(result)
        else:
            waiting.set_result(result)
