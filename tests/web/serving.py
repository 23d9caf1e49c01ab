"""A page on a real port, for tests that speak HTTP or drive a browser."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import uvicorn

from qlora_chat.settings import ServeSettings
from qlora_chat.web.app import build_app, listen
from tests.fakes import ScriptedEngine, scripted_chat


@dataclass(frozen=True, eq=False)
class Served:
    """A running page and the engine behind it."""

    url: str
    engine: ScriptedEngine


@contextlib.contextmanager
def serving(engine: ScriptedEngine, settings: ServeSettings | None = None, *, logging_on: bool = False) -> Iterator[Served]:
    """Serve the page of a scripted chat on a free port until the block ends."""
    settings = settings or ServeSettings()
    listening = listen(settings)
    started = threading.Event()
    server: list[uvicorn.Server] = []

    async def run() -> None:
        app = build_app(scripted_chat(engine), settings, logging_on=logging_on)
        config = uvicorn.Config(app, log_level="critical", lifespan="on", ws="none", timeout_graceful_shutdown=0)
        server.append(uvicorn.Server(config))
        started.set()
        await server[0].serve(sockets=[listening])

    thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    thread.start()
    try:
        assert started.wait(60), "the page was not built"
        until = time.monotonic() + 20
        while not server[0].started:
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < until
            time.sleep(0.01)
        yield Served(f"http://127.0.0.1:{listening.getsockname()[1]}", engine)
    finally:
        if server:
            server[0].should_exit = True
        thread.join(20)
