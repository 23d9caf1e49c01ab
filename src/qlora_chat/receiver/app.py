"""The receiver as an ASGI app, and the server that runs it.

Scope: routes, start and end. Matplotlib is imported only when somebody opens the plots.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import ssl
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Generic, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from qlora_chat.receiver.intake import HEALTH, BatchWriter, Intake, ReceiverPolicy
from qlora_chat.receiver.stats import statistics
from qlora_chat.receiver.store import RecordStore
from qlora_chat.server.access_control import AccessControl
from qlora_chat.server.listener import ServeError, listen, url_of, uvicorn_config
from qlora_chat.server.security_headers import SecurityHeaders
from qlora_chat.settings import ReceiverSettings, is_loopback

T = TypeVar("T")

CLOSE_S = 10
"""Longest time that shutdown waits for requests in progress."""
PLOTS_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def build_app(store: RecordStore, settings: ReceiverSettings) -> ASGIApp:
    """POST /log takes records; GET / shows plots, /stats.json their numbers, /health that it is alive."""
    writer = BatchWriter(store.add)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        writing = asyncio.create_task(writer.run())
        yield
        writing.cancel()

    plots_of, numbers_of = SharedResult(partial(_page, store)), SharedResult(partial(statistics, store))

    async def plots(_: Request) -> Response:
        return HTMLResponse(await plots_of())

    async def numbers(_: Request) -> Response:
        return JSONResponse(await numbers_of(), headers={"cache-control": "no-store"})

    async def health(_: Request) -> Response:
        return PlainTextResponse("ok")

    routes = [
        Route("/log", Intake(writer, settings.secret).receive, methods=["POST"]),
        Route("/", plots),
        Route("/stats.json", numbers),
        Route(HEALTH, health),
    ]
    app = Starlette(routes=routes, lifespan=lifespan)
    policy = ReceiverPolicy(settings.token, settings.senders)
    protected = AccessControl(app, policy, settings.host, settings.allowed_hosts, settings.trusted_proxies)
    return SecurityHeaders(protected, lambda _: PLOTS_POLICY)


_READERS = ThreadPoolExecutor(1, thread_name_prefix="qlora-chat-plots")
"""Computes statistics and plots, one at a time, so that records never wait for a thread."""


class SharedResult(Generic[T]):
    """Result of a computation; callers that come while it runs share it."""

    def __init__(self, compute: Callable[[], T]) -> None:
        self._compute = compute
        self._running: asyncio.Future[T] | None = None

    async def __call__(self) -> T:
        """The result, not older than the call that began it."""
        if self._running is None or self._running.done():
            self._running = asyncio.get_running_loop().run_in_executor(_READERS, self._compute)
        return await asyncio.shield(self._running)


def server_config(store: RecordStore, settings: ReceiverSettings) -> uvicorn.Config:
    """Uvicorn's settings of a receiver."""
    return uvicorn_config(
        build_app(store, settings),
        shutdown_timeout_s=CLOSE_S,
        proxies=settings.trusted_proxies,
        lifespan="on",
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.key,
    )


def serve(store: RecordStore, settings: ReceiverSettings, notify: Callable[[str], None]) -> None:
    """Receive until SIGTERM or Ctrl-C; requests in progress are finished. ServeError if port or certificate cannot be used."""
    _check_certificate(settings)
    with contextlib.closing(listen(settings.host, settings.port)) as listening, contextlib.suppress(KeyboardInterrupt):
        server = uvicorn.Server(server_config(store, settings))
        # for a signal that comes before uvicorn has its own handlers, and for the one that uvicorn raises again at its end
        signal.signal(signal.SIGTERM, server.handle_exit)
        address = url_of(listening, settings.host, "https" if settings.certificate else "http")
        notify(f"Receiving: LOGGING_URL={address}/log (plots: {address}/)")
        if not settings.certificate and not is_loopback(settings.host):
            notify("Without --tls-cert conversations come unencrypted: let a proxy in front of this server speak https")
        asyncio.run(server.serve(sockets=[listening]))


def _page(store: RecordStore) -> str:
    from qlora_chat.receiver.page import page

    return page(statistics(store))


def _check_certificate(settings: ReceiverSettings) -> None:
    if settings.certificate is None:
        return
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(settings.certificate, settings.key)
    except (OSError, ssl.SSLError) as problem:
        raise ServeError(
            f"--tls-cert {settings.certificate} cannot be used ({problem}); it must hold the chain as PEM, "
            "and it or --tls-key the matching private key"
        ) from problem
