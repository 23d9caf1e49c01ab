"""Everything behind one port: the API and the probes from the first moment, the page once the model is there.

    guard -> /v1, /health, /ready, /metrics -> the page, or a note that the model is being loaded

Scope: puts the parts together. Gradio is imported only when a page is built: it takes as long as the model takes to load,
and the two go on side by side.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from qlora_chat.api.app import build_api
from qlora_chat.api.state import LOADING_RETRY_SECONDS, Serving
from qlora_chat.chat import Chat
from qlora_chat.server.access_control import AccessControl, route_of
from qlora_chat.server.security_headers import ContentPolicy
from qlora_chat.serving.probes import probes
from qlora_chat.serving.request_log import Requests
from qlora_chat.serving.tracing import Traces
from qlora_chat.settings import ServeSettings, quiet_libraries
from qlora_chat.web.event_filter import PageEvents
from qlora_chat.web.features import NOTHING, PageFeatures
from qlora_chat.web.sessions import Sessions


class Site:
    """One server's parts. `app` answers from the beginning; `open` brings the model and the page."""

    def __init__(self, settings: ServeSettings, *, keeps: PageFeatures = NOTHING, traces: Traces | None = None) -> None:
        self.serving = Serving(settings, keeps.kept or keeps.logged)
        self._keeps = keeps
        self._page: ASGIApp = _loading
        self._sessions: Sessions | None = None
        metrics = self.serving.metrics
        self.api = build_api(self.serving, [probes(self.serving.lifecycle, metrics)])
        self.api.mount("/", self._current_page)
        guarded = AccessControl(self.api, settings)
        self.app: ASGIApp = ContentPolicy(Requests(guarded, metrics, route_of, log=settings.log_requests, traces=traces))

    @contextlib.asynccontextmanager
    async def open(self, chat: Chat) -> AsyncIterator[None]:
        """From now on the model is there. At the end, what is still being written is cut off and the pages let go."""
        sessions, page, gradio = _build_page(self.serving.open(chat), self._keeps)
        self._sessions = sessions
        async with page.router.lifespan_context(page):
            self._page = gradio
            try:
                yield
            finally:
                sessions.stop_all()
                page.state.release()

    @property
    def unfinished(self) -> int:
        """Answers that are not at their end, the page's and the API's."""
        pages = self._sessions.answering if self._sessions else 0
        return max(self.serving.unfinished, pages)

    async def _current_page(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._page(scope, receive, send)


def _build_page(chat: Chat, keeps: PageFeatures) -> tuple[Sessions, Any, ASGIApp]:
    """Sessions, the page's app for its lifespan, and the same app behind a check of what it is sent. Call it in the event
    loop: Gradio makes one otherwise."""
    quiet_libraries()
    from fastapi import FastAPI
    from fastapi.responses import FileResponse
    from gradio.routes import App, mount_gradio_app

    from qlora_chat.web.files import leave_files_alone, private_folder
    from qlora_chat.web.page import CSS, JS, build_page, events_of, theme

    sessions = Sessions(chat)
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    @app.get("/page.js")
    async def page_js() -> FileResponse:
        return FileResponse(JS, media_type="text/javascript", headers={"cache-control": "no-cache"})

    leave_files_alone()
    with private_folder():
        page = build_page(chat, sessions, keeps)
        mount_gradio_app(
            app, page, path="/", footer_links=[], run_history=False, ssr_mode=False, enable_monitoring=False, pwa=False,
            mcp_server=False, theme=theme(), css=CSS.read_text(), show_error=True,
        )  # fmt: skip
    mounted = (getattr(route, "app", None) for route in app.routes)
    # Pages hold connections open only to be noticed when they close; this event ends them.
    app.state.release = next(each for each in mounted if isinstance(each, App)).stop_event.set

    def has_session(name: str) -> bool:
        return name in page._queue.pending_messages_per_session

    return sessions, app, PageEvents(app, events_of(page), has_session)


async def _loading(scope: Scope, receive: Receive, send: Send) -> None:
    """What stands in for the page until it is there."""
    headers = {"retry-after": str(LOADING_RETRY_SECONDS)}
    if scope["path"] == "/":
        answer: Any = HTMLResponse(_LOADING_PAGE, 503, headers)
    else:
        answer = PlainTextResponse("The model is still being loaded.", 503, headers)
    await answer(scope, receive, send)


_LOADING_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="2"><title>QLoRA Chat</title>
<style>
:root { color-scheme: light dark; font-family: system-ui, sans-serif; }
body { display: grid; min-height: 90vh; place-items: center; margin: 0; }
</style></head>
<body><p role="status">The model is being loaded. This page goes on by itself.</p></body></html>
"""
