"""The page as an ASGI app, and the server that runs it.

Scope: ports, start, readiness, signals, end. Gradio is imported only when a page is built: it takes as long as the
model takes to load, and the two go on side by side.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp

from qlora_chat.chat import Chat
from qlora_chat.models import Notify
from qlora_chat.settings import DEFAULT_PORT, ServeSettings, quiet_libraries
from qlora_chat.web.events import PageEvents
from qlora_chat.web.guard import HEALTH, Guard
from qlora_chat.web.policy import ContentPolicy
from qlora_chat.web.session import Sessions

PORTS_TRIED = 100
DRAIN_SECONDS = 25.0
"""How long the end of the server waits for answers being written."""
KEEP_ALIVE_SECONDS = 75
POLL_SECONDS = 0.05


class ServeError(RuntimeError):
    """The page cannot be served; the message is fit to be shown."""

    for_people = True


@dataclass(frozen=True)
class _Served:
    app: ASGIApp
    sessions: Sessions
    release: Callable[[], None]
    """Ends the connections that pages hold open only to be noticed when they close; call it in the event loop."""


def build_app(chat: Chat, settings: ServeSettings, *, logging_on: bool) -> ASGIApp:
    """The page and /health behind the guard. Call it where an event loop is running: Gradio makes one otherwise."""
    return _build(chat, settings, logging_on).app


def _build(chat: Chat, settings: ServeSettings, logging_on: bool) -> _Served:
    quiet_libraries()
    from fastapi import FastAPI
    from fastapi.responses import FileResponse, PlainTextResponse
    from gradio.routes import App, mount_gradio_app

    from qlora_chat.web.page import CSS, JS, build_page, inputs_of_events, theme

    sessions = Sessions(chat)
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    @app.get(HEALTH)
    async def health() -> PlainTextResponse:
        return PlainTextResponse("ok")

    @app.get("/page.js")
    async def page_js() -> FileResponse:
        return FileResponse(JS, media_type="text/javascript", headers={"cache-control": "no-cache"})

    page = build_page(chat, sessions, logging_on=logging_on)
    mount_gradio_app(
        app, page, path="/", footer_links=[], run_history=False, ssr_mode=False, enable_monitoring=False, pwa=False,
        mcp_server=False, theme=theme(), css=CSS.read_text(), show_error=True,
    )  # fmt: skip
    mounted = (getattr(route, "app", None) for route in app.routes)
    page_app = next(each for each in mounted if isinstance(each, App))
    guarded = Guard(PageEvents(app, inputs_of_events(page)), settings)
    return _Served(ContentPolicy(guarded), sessions, page_app.stop_event.set)


def serve(open_chat: Callable[[], Chat], settings: ServeSettings, notify: Notify, *, logging_on: bool) -> None:
    """Open the chat, serve its page until SIGTERM or Ctrl-C, then finish running answers and close the engine.

    ServeError if the port cannot be had, before anything is loaded; whatever open_chat raises passes through.
    """
    with contextlib.closing(listen(settings)) as listening:
        opening = _in_background(open_chat)
        with contextlib.suppress(KeyboardInterrupt), _sigterm_returns():
            quiet_libraries()
            import qlora_chat.web.page  # noqa: F401  (takes seconds, as does the model: side by side)

            chat = opening.result()
            try:
                asyncio.run(_serve(chat, settings, notify, logging_on, listening))
            finally:
                chat.engine.close()


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
        return socket.create_server((host.strip("[]"), port), family=family)
    except OSError as problem:
        raise ServeError(
            f"cannot listen on {host} port {port} ({problem.strerror or problem}); choose another --port, or leave it out"
        ) from problem


def _in_background(open_chat: Callable[[], Chat]) -> Future[Chat]:
    """What open_chat returns or raises, some time; its thread does not keep the program from ending."""
    opening: Future[Chat] = Future()

    def run() -> None:
        try:
            opening.set_result(open_chat())
        except BaseException as problem:
            opening.set_exception(problem)

    threading.Thread(target=run, name="qlora-chat-open", daemon=True).start()
    return opening


@contextlib.contextmanager
def _sigterm_returns() -> Iterator[None]:
    """Uvicorn raises SIGTERM again when it is done, which would end the program before the engine is closed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


async def _serve(chat: Chat, settings: ServeSettings, notify: Notify, logging_on: bool, listening: socket.socket) -> None:
    served = _build(chat, settings, logging_on)
    config = uvicorn.Config(
        served.app,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(DRAIN_SECONDS) + 3,
        server_header=False,
        access_log=False,
        log_level="warning",
        lifespan="on",
        ws="none",
    )
    server = uvicorn.Server(config)
    attending = asyncio.create_task(_attend(server, served, notify, address(settings.host, listening)))
    try:
        await server.serve(sockets=[listening])
    finally:
        attending.cancel()
    if not server.started:
        raise ServeError("the server did not start; what is above says why")


async def _attend(server: uvicorn.Server, served: _Served, notify: Notify, url: str) -> None:
    """Say when the page is ready; at the end let running answers finish, then let the pages go."""
    while not server.started:
        await asyncio.sleep(POLL_SECONDS)
    notify(f"QLoRA Chat is ready: {url}")
    while not server.should_exit:
        await asyncio.sleep(POLL_SECONDS)
    if running := served.sessions.answering:
        answers = "answer" if running == 1 else "answers"
        notify(f"Finishing {running} {answers}, at most {DRAIN_SECONDS:.0f} s; Ctrl-C ends at once")
    until = time.monotonic() + DRAIN_SECONDS
    while served.sessions.answering and time.monotonic() < until and not server.force_exit:
        await asyncio.sleep(POLL_SECONDS)
    served.sessions.stop_all()
    served.release()


def address(host: str, listening: socket.socket) -> str:
    """The URL that a browser on this machine opens."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host).strip("[]")
    return f"http://{f'[{name}]' if ':' in name else name}:{listening.getsockname()[1]}"
