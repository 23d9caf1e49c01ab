"""The server process of the site: start, signals, shutdown.

Scope: one process from its first request to its last. The socket answers while the model loads; the first SIGTERM or
Ctrl-C lets running answers finish, the second ends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import FrameType
from typing import Any

import uvicorn

from qlora_chat.chat import Chat
from qlora_chat.models import Notify
from qlora_chat.server.listener import ServeError, listen, url_of, uvicorn_config
from qlora_chat.server.login import EndedSessions
from qlora_chat.server.site import Site
from qlora_chat.serving.request_log import log_requests_to
from qlora_chat.serving.tracing import open_tracer
from qlora_chat.settings import ServeSettings, quiet_libraries, traces_endpoint
from qlora_chat.web.gradio_stubs import skip_type_stubs

DRAIN_S = 25.0
"""Longest time that shutdown waits for running answers."""
CLOSE_S = 3
"""Longest time after that for connections to send what is left."""
POLL_S = 0.05


def serve(
    open_chat: Callable[[], Chat],
    settings: ServeSettings,
    notify: Notify,
    *,
    logging_on: bool,
    history_on: bool = False,
    ended_sessions: EndedSessions | None = None,
    outbox_depth: Callable[[], int] | None = None,
) -> None:
    """Serve, open the chat meanwhile, and at SIGTERM or Ctrl-C finish running answers and close the engine.

    `ended_sessions` is where log-outs are recorded; without it, a login ends with the process. `outbox_depth` counts the turns
    that wait for delivery, for /metrics; None if nothing is delivered. Raises ServeError if
    the port cannot be used, before anything is loaded, and whatever `open_chat` raises.
    """
    tracer = open_tracer(traces_endpoint())
    if settings.log_requests:
        log_requests_to(sys.stderr)
    with contextlib.closing(listen(settings.host, settings.port)) as listening:
        site = Site(settings, logging_on=logging_on, history_on=history_on, ended_sessions=ended_sessions, tracer=tracer)
        if outbox_depth:
            site.state.metrics.watch_outbox(outbox_depth)
        opening = _in_background(open_chat, "qlora-chat-open")
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_serve(site, opening, notify, listening, settings.host))


def _in_background(work: Callable[[], Any], name: str) -> Future[Any]:
    """Future of what `work` returns or raises; its daemon thread does not keep the program alive."""
    done: Future[Any] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as problem:
            done.set_exception(problem)

    threading.Thread(target=run, name=name, daemon=True).start()
    return done


class _Server(uvicorn.Server):
    """Uvicorn stops listening at the first signal; this one goes on until all is answered, so that probes are answered too."""

    _signalled = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._signalled:
            self.should_exit = self.force_exit = True
        self._signalled = True

    @property
    def ending(self) -> bool:
        """True once shutdown has begun, by a signal or by an error."""
        return self._signalled or self.should_exit


async def _serve(site: Site, opening: Future[Chat], notify: Notify, listening: socket.socket, host: str) -> None:
    proxies = site.state.settings.trusted_proxies
    server = _Server(uvicorn_config(site.app, shutdown_timeout_s=CLOSE_S, proxies=proxies, lifespan="off"))
    attending = asyncio.create_task(_attend(server, site, opening, notify, url_of(listening, host)))
    try:
        await server.serve(sockets=[listening])
    finally:
        server.should_exit = True
        await attending
    if not server.started:
        raise ServeError("the server did not start; the messages above say why")


async def _attend(server: _Server, site: Site, opening: Future[Chat], notify: Notify, url: str) -> None:
    """Open the chat and announce it; at the end let running answers finish, then close everything, in this order."""
    try:
        chat = await _await_chat(server, opening)
        if chat is None:
            return
        try:
            async with site.open(chat):
                notify(f"QLoRA Chat is ready: {url}")
                while not server.ending:
                    await asyncio.sleep(POLL_S)
                await _drain(server, site, notify)
        finally:
            chat.engine.close()
    finally:
        server.should_exit = True


async def _await_chat(server: _Server, opening: Future[Chat]) -> Chat | None:
    """The chat, once it and the page's libraries are loaded in parallel; None if the server ends before."""
    importing = _in_background(_import_page, "qlora-chat-import")
    while not server.ending and not (opening.done() and (opening.exception() or importing.done())):
        await asyncio.sleep(POLL_S)
    if not opening.done():
        return None
    chat = opening.result()
    if server.ending:
        chat.engine.close()
        return None
    importing.result()
    return chat


def _import_page() -> None:
    quiet_libraries()
    skip_type_stubs()
    import qlora_chat.web.page  # noqa: F401  (takes seconds, as the model does: load both in parallel)


async def _drain(server: _Server, site: Site, notify: Notify) -> None:
    site.state.drain()
    if running := site.unfinished:
        answers = "answer" if running == 1 else "answers"
        notify(f"Finishing {running} {answers}, at most {DRAIN_S:.0f} s; Ctrl-C ends at once")
    until = time.monotonic() + DRAIN_S
    while site.unfinished and time.monotonic() < until and not server.force_exit:
        await asyncio.sleep(POLL_S)
