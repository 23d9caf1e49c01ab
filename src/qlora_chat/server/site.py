"""Everything behind one port: API and probes from the first moment, the page once the model is loaded.

    security headers -> request log -> access control -> /v1 and probes -> the page (or: loading)

Scope: puts the parts together. Gradio is imported only when a page is built: it takes as long as the model takes to load,
and both load in parallel.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from qlora_chat.api.routes import build_api
from qlora_chat.api.state import LOADING_RETRY_S, ServerState
from qlora_chat.chat import Chat
from qlora_chat.server.login import EndedSessions, small_page
from qlora_chat.server.security_headers import SecurityHeaders, page_policy
from qlora_chat.server.site_access import protect, route_of
from qlora_chat.serving.metrics import probes
from qlora_chat.serving.model_changes import ModelChanges
from qlora_chat.serving.request_log import RequestLog
from qlora_chat.serving.tracing import Tracer
from qlora_chat.settings import ServeSettings, is_shared, operates_page, quiet_libraries, training_folder
from qlora_chat.web.event_filter import PageEvents
from qlora_chat.web.sessions import PageFeatures, Sessions
from qlora_chat.web.tab_names import TabNames


class Site:
    """One server's parts. `app` responds from the beginning; `open` adds the model and the page."""

    def __init__(
        self,
        settings: ServeSettings,
        *,
        logging_on: bool = False,
        history_on: bool = False,
        ended_sessions: EndedSessions | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """`logging_on`: turns are sent to a receiver; `history_on`: conversations outlive the process; `ended_sessions`: where
        log-outs are recorded."""
        self.state = ServerState(settings, can_store=logging_on or history_on, history_on=history_on)
        self.features = PageFeatures(
            logging_on,
            history_on,
            is_shared(settings),
            has_password=settings.token is not None,
            operated=operates_page(settings),
        )
        self._page: ASGIApp = _loading
        self._sessions: Sessions | None = None
        metrics = self.state.metrics
        self.api = build_api(self.state, [probes(lambda: self.state.phase, metrics)])
        self.api.mount("/", self._current_page)
        protected = protect(self.api, settings, ended_sessions)
        logged = RequestLog(protected, metrics, route_of, log=settings.log_requests, tracer=tracer)
        self.app: ASGIApp = SecurityHeaders(logged, page_policy)

    @contextlib.asynccontextmanager
    async def open(self, chat: Chat) -> AsyncIterator[None]:
        """Take requests to the model until the block ends; answers that still run then are cut off, and the pages closed."""
        sessions, page, gradio = _build_page(self.state.open(chat), self.features)
        self._sessions = sessions
        async with page.router.lifespan_context(page):
            self._page = gradio
            try:
                yield
            finally:
                sessions.stop_all()
                page.state.release()
                await asyncio.to_thread(page.state.close)

    @property
    def unfinished(self) -> int:
        """Number of answers of page and API that run or wait."""
        return max(self.state.unfinished, self._sessions.running if self._sessions else 0)

    async def _current_page(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._page(scope, receive, send)


def _build_page(chat: Chat, features: PageFeatures) -> tuple[Sessions, Any, ASGIApp]:
    """Sessions, the page's app for its lifespan, and the same app behind a filter of its events.

    Must run in the event loop: Gradio creates one otherwise.
    """
    quiet_libraries()
    from fastapi import FastAPI
    from gradio.routes import App, mount_gradio_app

    from qlora_chat.web.chats.deletion import PendingDeletions
    from qlora_chat.web.chats.route import chats_routes
    from qlora_chat.web.gradio_overrides import leave_files_alone, private_folder
    from qlora_chat.web.markdown import stylesheet
    from qlora_chat.web.message_list.route import component_routes
    from qlora_chat.web.page import CSS, build_page, events_of, theme
    from qlora_chat.web.panels.training_runs import TrainingRuns
    from qlora_chat.web.panels.upload import TrainingWork, UploadedFiles, upload_routes

    sessions = Sessions(chat)
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    app.include_router(component_routes(chat, sessions, features))
    deletions = PendingDeletions(chat)
    deletions.resume()
    app.include_router(chats_routes(chat, sessions, features, deletions))
    work = None
    if features.operated and ModelChanges.switchable(chat.engine):
        work = TrainingWork(TrainingRuns(training_folder()), UploadedFiles())
        app.include_router(upload_routes(work.uploads))

    def close() -> None:
        deletions.close()
        if work:
            work.close()

    app.state.close = close

    leave_files_alone()
    with private_folder():
        page = build_page(chat, sessions, features, work)
        mount_gradio_app(
            app, page, path="/", footer_links=[], run_history=False, ssr_mode=False, enable_monitoring=False, pwa=False,
            mcp_server=False, theme=theme(), css=CSS.read_text() + stylesheet(), show_error=True,
        )  # fmt: skip
    mounted = (getattr(route, "app", None) for route in app.routes)
    # Each page holds a connection open so that its closing is noticed; this event ends them.
    app.state.release = next(each for each in mounted if isinstance(each, App)).stop_event.set

    queue = page._queue

    def forget(name: str) -> None:
        queue.pending_messages_per_session.pop(name, None)
        sessions.close(name, seconds=0)

    tabs = TabNames(lambda name: bool(queue.pending_event_ids_session.get(name)), forget)
    has_session = queue.pending_messages_per_session.__contains__
    return sessions, app, PageEvents(app, events_of(page), has_session, tabs, shared=features.shared)


async def _loading(scope: Scope, receive: Receive, send: Send) -> None:
    """Stand in for the page until it is built."""
    headers = {"retry-after": str(LOADING_RETRY_S)}
    if scope["path"] == "/":
        answer: Any = HTMLResponse(_LOADING_PAGE, 503, headers)
    else:
        answer = PlainTextResponse("The model is still being loaded.", 503, headers)
    await answer(scope, receive, send)


_LOADING_PAGE = small_page(
    '<p role="status">The model is being loaded. This page continues by itself.</p>', '<meta http-equiv="refresh" content="2">'
)
