"""The server that runs the site: ports, start, signals, end.

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
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from qlora_chat.chat import Chat
from qlora_chat.errors import UserError
from qlora_chat.models import Notify
from qlora_chat.server.site import Site
from qlora_chat.server.slow_clients import TimedConnection
from qlora_chat.serving.request_log import log_requests_to
from qlora_chat.serving.tracing import open_traces
from qlora_chat.settings import DEFAULT_PORT, ServeSettings, is_loopback, quiet_libraries, traces_endpoint
from qlora_chat.web.features import PageFeatures

PORTS_TRIED = 100
DRAIN_SECONDS = 25.0
"""How long the end of the server waits for answers being written."""
CLOSING_SECONDS = 3
"""After that, how long for connections to send what they still hold."""
KEEP_ALIVE_SECONDS = 75
POLL_SECONDS = 0.05


class ServeError(UserError, RuntimeError):
    """The page cannot be served; the message is fit to be shown."""


def build_app(chat: Chat, settings: ServeSettings, *, logging_on: bool, history_on: bool = False) -> ASGIApp:
    """Page, API and probes over a chat that is open already, behind the guard. Its lifespan opens and closes the page."""
    site = Site(settings, keeps=_keeps(settings, logging_on, history_on))

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        async with site.open(chat):
            yield

    site.api.router.lifespan_context = lifespan
    return site.app


def _keeps(settings: ServeSettings, logging_on: bool, history_on: bool) -> PageFeatures:
    return PageFeatures(logging_on, history_on, shared=not is_loopback(settings.host))


def serve(
    open_chat: Callable[[], Chat],
    settings: ServeSettings,
    notify: Notify,
    *,
    logging_on: bool,
    history_on: bool = False,
    outbox_depth: Callable[[], int] | None = None,
) -> None:
    """Serve, open the chat meanwhile, and at SIGTERM or Ctrl-C finish running answers and close the engine.

    `outbox_depth` counts the turns that wait for delivery, for /metrics; None where nothing is delivered. ServeError if the
    port cannot be had, before anything is loaded; whatever open_chat raises passes through.
    """
    traces = open_traces(traces_endpoint())
    if settings.log_requests:
        log_requests_to(sys.stderr)
    with contextlib.closing(listen(settings)) as listening:
        site = Site(settings, keeps=_keeps(settings, logging_on, history_on), traces=traces)
        if outbox_depth:
            site.serving.metrics.watch_outbox(outbox_depth)
        opening = _in_background(open_chat, "qlora-chat-open")
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_serve(site, opening, notify, listening, settings.host))


def listen(settings: ServeSettings) -> socket.socket:
    """A listening socket on the port that was asked for, or on 7860 or the next free one. ServeError if there is none."""
    if settings.port is not None:
        return _listen(settings.host, settings.port)
    for port in range(DEFAULT_PORT, DEFAULT_PORT + PORTS_TRIED):
        with contextlib.suppress(ServeError):
            return _listen(settings.host, port)
    return _listen(settings.host, DEFAULT_PORT)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host.strip("[]"), port), family=family, backlog=2048)
    except OSError as problem:
        raise ServeError(
            f"cannot listen on {host} port {port} ({problem.strerror or problem}); choose another --port, or leave it out"
        ) from problem
    # Connections take it over. asyncio sets it only on sockets whose protocol is named; without it, what follows the head of an
    # answer waits 40 ms for the client's acknowledgement, on every connection that is used again.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _in_background(work: Callable[[], Any], name: str) -> Future[Any]:
    """What `work` returns or raises, some time; its thread does not keep the program from ending."""
    done: Future[Any] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as problem:
            done.set_exception(problem)

    threading.Thread(target=run, name=name, daemon=True).start()
    return done


class _Server(uvicorn.Server):
    """Uvicorn stops listening at the first signal; this one goes on, so that a probe is told, until all is answered."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.asked_to_end = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.asked_to_end:
            self.should_exit = self.force_exit = True
        self.asked_to_end = True

    @property
    def ending(self) -> bool:
        """Whether it is to end, by a signal or by itself."""
        return self.asked_to_end or self.should_exit


async def _serve(site: Site, opening: Future[Chat], notify: Notify, listening: socket.socket, host: str) -> None:
    config = uvicorn.Config(
        site.app,
        http=TimedConnection,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=CLOSING_SECONDS,
        server_header=False,
        access_log=False,
        log_level="warning",
        lifespan="off",
        ws="none",
    )
    server = _Server(config)
    attending = asyncio.create_task(_attend(server, site, opening, notify, address(host, listening)))
    try:
        await server.serve(sockets=[listening])
    finally:
        server.should_exit = True
        await attending
    if not server.started:
        raise ServeError("the server did not start; what is above says why")


async def _attend(server: _Server, site: Site, opening: Future[Chat], notify: Notify, url: str) -> None:
    """Open the chat and say so; at the end let running answers finish, then close everything, in this order."""
    try:
        chat = await _opened(server, opening)
        if chat is None:
            return
        try:
            async with site.open(chat):
                notify(f"QLoRA Chat is ready: {url}")
                while not server.ending:
                    await asyncio.sleep(POLL_SECONDS)
                await _drain(server, site, notify)
        finally:
            chat.engine.close()
    finally:
        server.should_exit = True


async def _opened(server: _Server, opening: Future[Chat]) -> Chat | None:
    """The chat, once it and the page's libraries are loaded side by side; None if the server was asked to end before."""
    importing = _in_background(_import_page, "qlora-chat-import")
    while not server.ending and not (opening.done() and (opening.exception() or importing.done())):
        await asyncio.sleep(POLL_SECONDS)
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
    import qlora_chat.web.page  # noqa: F401  (takes seconds, as does the model: side by side)


async def _drain(server: _Server, site: Site, notify: Notify) -> None:
    site.serving.drain()
    if running := site.unfinished:
        answers = "answer" if running == 1 else "answers"
        notify(f"Finishing {running} {answers}, at most {DRAIN_SECONDS:.0f} s; Ctrl-C ends at once")
    until = time.monotonic() + DRAIN_SECONDS
    while site.unfinished and time.monotonic() < until and not server.force_exit:
        await asyncio.sleep(POLL_SECONDS)


def address(host: str, listening: socket.socket) -> str:
    """The URL that a browser on this machine opens."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host).strip("[]")
    return f"http://{f'[{name}]' if ':' in name else name}:{listening.getsockname()[1]}"
