"""Batches of records: what arrives while the disk is busy shares one commit.

Scope: between the event loop and the store. A record's outcome is known once it is on disk, and not before.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from qlora_chat.receiver.records import Record
from qlora_chat.receiver.store import Outcome

MAX_BATCH = 200
"""Records per commit."""

_Pending = tuple[Record, "asyncio.Future[Outcome]"]


class BatchWriter:
    """Hands records to `store_all` in the order of their arrival, in another thread, one batch at a time."""

    def __init__(self, store_all: Callable[[Sequence[Record]], list[Outcome]]) -> None:
        self._store_all = store_all
        self._queue: asyncio.Queue[_Pending] = asyncio.Queue()

    async def add(self, record: Record) -> Outcome:
        """Outcome of the record, once it is on disk. Raises what `store_all` raised."""
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((record, outcome))
        return await outcome

    async def run(self) -> None:
        """Write until cancelled; a batch in progress is finished first."""
        while True:
            batch = [await self._queue.get()]
            while len(batch) < MAX_BATCH and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            await asyncio.shield(asyncio.create_task(self._write(batch)))

    async def _write(self, batch: Sequence[_Pending]) -> None:
        try:
            outcomes = await asyncio.to_thread(self._store_all, [record for record, _ in batch])
        except Exception as problem:
            if len(batch) > 1:  # perhaps only one record's fault: retry each alone
                for each in batch:
                    await self._write([each])
                return
            _resolve(batch[0][1], problem)
            return
        for (_, pending), outcome in zip(batch, outcomes, strict=True):
            _resolve(pending, outcome)


def _resolve(pending: asyncio.Future[Outcome], result: Outcome | Exception) -> None:
    with contextlib.suppress(asyncio.InvalidStateError):  # the client is gone
        if isinstance(result, Exception):
            pending.set_exception(result)
        else:
            pending.set_result(result)
