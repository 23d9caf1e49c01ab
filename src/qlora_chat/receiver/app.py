"""The receiver as an ASGI app, and the server that runs it.

Scope: routes, start and end. Matplotlib is imported only when somebody looks at the plots.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from qlora_chat.errors import UserError
from qlora_chat.receiver.intake import HEALTH, Intake, IntakeGuard
from qlora_chat.receiver.stats import statistics
from qlora_chat.receiver.store import RecordStore
from qlora_chat.receiver.writer import Writer
from qlora_chat.settings import ReceiverSettings, is_loopback

KEEP_ALIVE_SECONDS = 75
MOST_REQUESTS = 500
"""At once; what is beyond gets 503, and its sender comes again."""
END_SECONDS = 10


class ReceiverError(UserError, RuntimeError):
    """The receiver cannot be started; the message is fit to be shown."""


def build_app(store: RecordStore, settings: ReceiverSettings) -> ASGIApp:
    """POST /log takes records; GET / shows plots, /stats.json their numbers, /health that it lives."""
    writer = Writer(store.keep)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        working = asyncio.create_task(writer.run())
        yield
        working.cancel()

    async def plots(_: Request) -> Response:
        return HTMLResponse(await asyncio.to_thread(_page, store))

    async def numbers(_: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(statistics, store))

    async def health(_: Request) -> Response:
        return PlainTextResponse("ok")

    routes = [
        Route("/log", Intake(writer, settings.secret).receive, methods=["POST"]),
        Route("/", plots),
        Route("/stats.json", numbers),
        Route(HEALTH, health),
    ]
    return IntakeGuard(Starlette(routes=routes, lifespan=lifespan), settings)


def _page(store: RecordStore) -> str:
    from qlora_chat.receiver.page import page

    return page(statistics(store))


def serve(store: RecordStore, settings: ReceiverSettings, notify: Callable[[str], None]) -> None:
    """Receive until SIGTERM or Ctrl-C; requests under way are finished. ReceiverError if the port cannot be had."""
    _check_certificate(settings)
    with contextlib.closing(_listen(settings)) as listening, contextlib.suppress(KeyboardInterrupt):
        signal.signal(signal.SIGTERM, _interrupt)  # uvicorn raises it again at its end, which would end us before the store
        scheme = "https" if settings.certificate else "http"
        address = f"{scheme}://{_shown(settings.host)}:{listening.getsockname()[1]}"
        notify(f"Receiving: LOGGING_URL={address}/log (plots: {address}/)")
        if not settings.certificate and not is_loopback(settings.host):
            notify("Without --tls-cert conversations come unencrypted: let a proxy in front of this server speak https")
        config = uvicorn.Config(
            build_app(store, settings),
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=END_SECONDS,
            limit_concurrency=MOST_REQUESTS,
            ssl_certfile=settings.certificate,
            ssl_keyfile=settings.key,
            server_header=False,
            access_log=False,
            log_level="warning",
            lifespan="on",
            ws="none",
        )
        asyncio.run(uvicorn.Server(config).serve(sockets=[listening]))


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _check_certificate(settings: ReceiverSettings) -> None:
    if settings.certificate is None:
        return
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(settings.certificate, settings.key)
    except (OSError, ssl.SSLError) as problem:
        raise ReceiverError(
            f"--tls-cert {settings.certificate} cannot be used ({problem}); it must hold the chain as PEM, "
            "and it or --tls-key the private key that belongs to it"
        ) from problem


def _listen(settings: ReceiverSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listening = socket.create_server((settings.host.strip("[]"), settings.port), family=family)
    except OSError as problem:
        raise ReceiverError(
            f"cannot listen on {settings.host} port {settings.port} ({problem.strerror or problem}); choose another --port"
        ) from problem
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # for its connections; asyncio leaves it out here
    return listening


def _shown(host: str) -> str:
    name = host.strip("[]")
    return f"[{name}]" if ":" in name else name
