"""Several servers with the same model: which one takes the next answer, and which ones are healthy.

Scope: load balancing and health checks. Knows nothing of a request but the bytes that identify its conversation.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import zlib
from collections.abc import Awaitable, Callable, Collection, Sequence

from qlora_chat.engines.remote.server import Server, Timeouts

CHECKS_PER_LISTING = 10
"""Health checks from one listing of the servers' models to the next."""


class Pool:
    """The servers, and a task that checks their health."""

    def __init__(self, servers: Sequence[Server], timeouts: Timeouts) -> None:
        self.servers, self._timeouts = tuple(servers), timeouts
        self._watching: asyncio.Task[None] | None = None

    def pick(self, affinity: bytes, without: Collection[Server] = ()) -> Server | None:
        """The least busy healthy server; None where none is left.

        Among equally busy ones a conversation, identified by `affinity`, returns to the server whose cache has its earlier
        turns; every process that shares the servers makes the same choice.
        """
        left = [server for server in self.servers if server not in without]
        candidates = [server for server in left if server.up] or left  # a server that is down may have come back since
        if not candidates:
            return None
        least = min(server.running for server in candidates)
        idle = [server for server in candidates if server.running == least]
        return max(idle, key=lambda server: zlib.crc32(affinity + server.url.encode()))

    def watch(self, refresh_models: Callable[[], Awaitable[None]]) -> None:
        """Start checking the servers' health and, less often, the models that they list; call it on the event loop."""
        self._watching = asyncio.create_task(self._watch(refresh_models))

    async def close(self) -> None:
        """Stop checking, and close every connection."""
        if self._watching:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        await asyncio.gather(*(server.close() for server in self.servers))

    def mark_down(self, server: Server) -> None:
        """Record that a server does not answer; requests that wait there for a first token move to another one."""
        server.up = False
        for task in tuple(server.waiting):
            task.cancel()

    async def _watch(self, refresh_models: Callable[[], Awaitable[None]]) -> None:
        for check in itertools.count(1):
            await asyncio.sleep(self._timeouts.health)
            await asyncio.gather(*(self._check(server) for server in self.servers))
            if check % CHECKS_PER_LISTING == 0:
                await refresh_models()

    async def _check(self, server: Server) -> None:
        if await server.is_healthy():
            server.up = True
        elif server.up and not await server.is_healthy():  # a single missed reply may be chance
            self.mark_down(server)
