"""Several servers with the same model: which one takes the next answer, and which ones are well.

Scope: choice and health. Knows no request's contents beyond what tells conversations apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import zlib
from collections.abc import Awaitable, Callable, Collection, Sequence

from qlora_chat.engines.remote.server import Patience, Server

LISTED_EVERY = 10
"""Looks at the servers' health from one look at their models to the next."""


class Pool:
    """The servers, and a task that looks after them."""

    def __init__(self, servers: Sequence[Server], patience: Patience) -> None:
        self.servers, self._patience = tuple(servers), patience
        self._watching: asyncio.Task[None] | None = None

    def choose(self, conversation: bytes, without: Collection[Server] = ()) -> Server | None:
        """The least busy of those that are well; None where none is left.

        Between equally busy ones a conversation keeps to its own, whose cache holds its earlier turns; every process
        that shares the servers makes the same choice.
        """
        left = [server for server in self.servers if server not in without]
        well = [server for server in left if server.up] or left  # those that are not may have come back since
        if not well:
            return None
        least = min(server.running for server in well)
        idle = [server for server in well if server.running == least]
        return max(idle, key=lambda server: zlib.crc32(conversation + server.url.encode()))

    def watch(self, listing: Callable[[], Awaitable[None]]) -> None:
        """Begin to look after the servers, and now and then at what they list; call it on the event loop."""
        self._watching = asyncio.create_task(self._watch(listing))

    async def close(self) -> None:
        """Stop looking, and let go of every connection."""
        if self._watching:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        await asyncio.gather(*(server.close() for server in self.servers))

    def mark_down(self, server: Server) -> None:
        """It does not answer: what waits there for a first token goes elsewhere."""
        server.up = False
        for task in tuple(server.waiting):
            task.cancel()

    async def _watch(self, listing: Callable[[], Awaitable[None]]) -> None:
        for look in itertools.count(1):
            await asyncio.sleep(self._patience.health)
            await asyncio.gather(*(self._look_at(server) for server in self.servers))
            if look % LISTED_EVERY == 0:
                await listing()

    async def _look_at(self, server: Server) -> None:
        well = await server.is_well()
        if well:
            server.up = True
        elif server.up and not await server.is_well():  # one missed reply is no illness
            self.mark_down(server)
