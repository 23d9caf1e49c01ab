"""A site on a real port, for tests that speak HTTP or drive a browser."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import uvicorn

from qlora_chat.chat import Chat
from qlora_chat.server.listener import ServeError, listen, uvicorn_config
from qlora_chat.server.site import Site
from qlora_chat.settings import ServeSettings
from tests.fakes import ScriptedEngine, scripted_chat

_PORTS: list[int] = []
"""Those of earlier servers of this process, which are taken again: a browser keeps compiled scripts by their address."""


@dataclass(frozen=True, eq=False)
class Served:
    """A running page and the engine behind it."""

    url: str
    engine: ScriptedEngine
    chat: Chat | None = None

    def as_new(self) -> Served:
        """The same, its engine as it was at first and without conversations."""
        if self.chat:
            self.chat.erase([each.id for each in self.chat.history.list()])
        self.engine.answer, self.engine.delay, self.engine.fails_after = "This is a scripted answer.", 0.0, None
        self.engine.pauses_after, self.engine.go_on = None, threading.Event()
        self.engine.prefilled = ()
        self.engine.streams.clear()
        return self


@contextlib.contextmanager
def serving(engine: ScriptedEngine, settings: ServeSettings | None = None, *, logging_on: bool = False) -> Iterator[Served]:
    """Serve the page of a scripted chat on a free port until the block ends."""
    chat = scripted_chat(engine)
    with serving_chat(chat, settings, logging_on=logging_on) as url:
        yield Served(url, engine, chat)


@contextlib.contextmanager
def serving_chat(
    chat: Chat, settings: ServeSettings | None = None, *, logging_on: bool = False, history_on: bool = False
) -> Iterator[str]:
    """Serve page and API over a chat on a free port until the block ends. -> the address."""
    settings = settings or ServeSettings()
    listening = _listen(settings)
    started = threading.Event()
    server: list[uvicorn.Server] = []

    async def run() -> None:
        site = Site(settings, logging_on=logging_on, history_on=history_on)
        config = uvicorn_config(site.app, shutdown_timeout_s=0, log_level="critical", lifespan="off")
        async with site.open(chat):
            server.append(uvicorn.Server(config))
            started.set()
            await server[0].serve(sockets=[listening])

    thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    thread.start()
    try:
        assert started.wait(60), "the page was not built"
        until = time.monotonic() + 60
        while not server[0].started:
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < until
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        if server:
            server[0].should_exit = True
        thread.join(60)


def _listen(settings: ServeSettings) -> socket.socket:
    """A socket on the port of the settings, or on one that no program asks for by its number."""
    for port in () if settings.port else _PORTS:
        with contextlib.suppress(ServeError):
            return listen(settings.host, port)
    listening = listen(settings.host, settings.port or 0)
    _PORTS.append(listening.getsockname()[1])
    return listening
