"""A small proxy in front of several page processes: browsers are distributed in turn, and a cookie pins each to its process."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import Iterator, Sequence

COOKIE = "page_process"
_PINNED = re.compile(rb"\b" + COOKIE.encode() + rb"=(\d+)")
_CONNECTION = re.compile(rb"^connection:.*\r\n", re.IGNORECASE | re.MULTILINE)


class Proxy:
    """One request a connection; a process that takes no connection is left for the next one, before anything was sent."""

    def __init__(self, ports: Sequence[int]) -> None:
        self._ports, self._turn = list(ports), 0
        self._open: set[asyncio.Task[None]] = set()
        self.port = 0
        self.served: list[int] = []
        """Which process took each request, by its index."""

    async def serve(self, started: threading.Event) -> None:
        """Listen until `stop` is called; what is still open then is cut off."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        self.stop = lambda: loop.call_soon_threadsafe(ended.set)
        server = await asyncio.start_server(self._take, "127.0.0.1", 0, limit=1 << 20)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await ended.wait()
        server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._open.add(task)
        async with contextlib.AsyncExitStack() as opened:
            opened.callback(self._open.discard, task)
            opened.push_async_callback(_close, writer)
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
                await self._hand_on(reader, writer, opened)

    async def _hand_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, opened: contextlib.AsyncExitStack
    ) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        index, there, out = await self._connect(head)
        opened.push_async_callback(_close, out)
        self.served.append(index)
        out.write(_CONNECTION.sub(b"", head[:-2]) + b"Connection: close\r\n\r\n")
        upwards = asyncio.create_task(_pour(reader, out))
        opened.callback(upwards.cancel)
        answer = await there.readuntil(b"\r\n\r\n")
        pin = f"Set-Cookie: {COOKIE}={index}; Path=/; HttpOnly; SameSite=Lax\r\n\r\n".encode()
        writer.write(answer[:-2] + pin)
        await _pour(there, writer)

    async def _connect(self, head: bytes) -> tuple[int, asyncio.StreamReader, asyncio.StreamWriter]:
        if pinned := _PINNED.search(head):
            first = int(pinned.group(1))
        else:
            first, self._turn = self._turn, (self._turn + 1) % len(self._ports)
        for index in [first, *(each for each in range(len(self._ports)) if each != first)]:
            with contextlib.suppress(OSError):
                return index, *await asyncio.open_connection("127.0.0.1", self._ports[index], limit=1 << 20)
        raise OSError("no process is left")


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def _pour(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while part := await source.read(65_536):
            target.write(part)
            await target.drain()


@contextlib.contextmanager
def proxying(ports: Sequence[int]) -> Iterator[Proxy]:
    """A proxy in front of these ports until the block ends."""
    proxy, started = Proxy(ports), threading.Event()
    thread = threading.Thread(target=asyncio.run, args=(proxy.serve(started),), daemon=True)
    thread.start()
    assert started.wait(60)
    try:
        yield proxy
    finally:
        proxy.stop()
        thread.join(60)
