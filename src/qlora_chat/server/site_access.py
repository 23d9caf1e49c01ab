"""Routes that the page and the API need, and the credentials that each of them takes.

Scope: the site's part of access control. Paths that Gradio would serve and the page does not need (uploads, files, proxies,
monitoring) are absent from the lists, and so refused. Knows no Gradio and no chat.
"""

from __future__ import annotations

from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Scope

from qlora_chat.api.errors import error_body
from qlora_chat.api.guidance import unknown_route
from qlora_chat.api.routes import OPENAPI
from qlora_chat.server.access_control import AccessControl, bearer_token, tokens_equal
from qlora_chat.server.browser_apps import BrowserApps
from qlora_chat.server.guesses import Guesses
from qlora_chat.server.head_requests import HeadAsGet
from qlora_chat.server.login import LOGIN, LOGOUT, EndedSessions, LoginForm, Password, login_page
from qlora_chat.server.request_body import BodyLimit, Refused
from qlora_chat.serving.metrics import HEALTH, METRICS, READY
from qlora_chat.serving.request_log import API_TOKEN
from qlora_chat.settings import ServeSettings

BODY_LIMIT = BodyLimit(size=2 * 2**20, seconds=10.0)
IMPORT = "/page/chats/import"
TRAINING_DATA = "/page/train/data"
TRAINING_LIMIT = BodyLimit(size=64 * 2**20, seconds=300.0)
"""Of a file to train on. Larger ones are named by their path on the server's machine."""
IMPORT_LIMIT = BodyLimit(size=32 * 2**20, seconds=120.0)
"""Of a file of conversations. Larger ones are for `qlora-chat history import`."""

API = "/v1/"
MODELS = "/v1/models"
ONE_MODEL = f"{MODELS}/"
OPERATOR_WRITES = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
OPERATOR_ROUTES = OPERATOR_WRITES | {METRICS}
API_WRITES = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"}) | OPERATOR_WRITES
SERVER_READS = frozenset({HEALTH, READY, METRICS, OPENAPI})
PAGE_READS = frozenset(
    {"/", "/page/chats", "/page/messages", "/theme.css", "/favicon.ico", "/gradio_api/startup-events", "/gradio_api/queue/data",
     "/gradio_api/app_id", "/gradio_api/info", "/config", "/gradio_api/theme.css"}
)  # fmt: skip
PAGE_PREFIXES = ("/assets/", "/page/static/", "/static/", "/svelte/", "/gradio_api/heartbeat/")
PAGE_STREAMS = ("/gradio_api/queue/data", "/gradio_api/heartbeat/")
"""Streams without end, which have no answer to HEAD."""
PAGE_WRITES = frozenset(
    {"/gradio_api/queue/join", "/gradio_api/cancel", "/gradio_api/run/predict", "/page/chats", "/page/chats/export",
     "/page/chats/save", IMPORT, TRAINING_DATA, LOGIN, LOGOUT}
)  # fmt: skip

READS = PAGE_READS | SERVER_READS | {MODELS}
READ_PREFIXES = (*PAGE_PREFIXES, ONE_MODEL)
WRITES = PAGE_WRITES | API_WRITES


def route_of(path: str) -> str:
    """Route of a path for metrics and logs: one of a fixed set, whatever a client requests."""
    if path in SERVER_READS or path in API_WRITES or path == MODELS:
        return path
    if path.startswith(ONE_MODEL):
        return f"{ONE_MODEL}{{model}}"
    return "page" if path in PAGE_READS or path in PAGE_WRITES or path.startswith(PAGE_PREFIXES) else "other"


def protect(app: ASGIApp, settings: ServeSettings, ended_sessions: EndedSessions | None = None) -> ASGIApp:
    """Access control around the site's app, the login form if there is a password, and the origins that may use the API."""
    password, guesses = Password(settings.token, ended_sessions) if settings.token else None, Guesses()
    policy = SitePolicy(password, guesses, settings)
    inner = LoginForm(app, password, guesses) if password else app
    checked = AccessControl(HeadAsGet(inner), policy, settings.host, settings.allowed_hosts, settings.trusted_proxies)
    return BrowserApps(checked, settings.allowed_origins)


class SitePolicy:
    """Access policy of the page and the API. Refuses with 404 (path), 405 (method), 401 or 403 (credentials), 429 (guesses)."""

    allow_links = True

    def __init__(self, password: Password | None, guesses: Guesses, settings: ServeSettings) -> None:
        self.body_limit = BODY_LIMIT
        self.body_limits: Mapping[str, BodyLimit] = {IMPORT: IMPORT_LIMIT, TRAINING_DATA: TRAINING_LIMIT}
        self._password, self._guesses = password, guesses
        tokens = {"operator": settings.operator_token, "token": settings.token}
        tokens |= {f"{API_TOKEN}-{number}": each for number, each in enumerate(settings.api_tokens, 1)}
        self._tokens = {name: each for name, each in tokens.items() if each}
        """By the name that a token has in logs."""

    async def authorize(self, scope: Scope, headers: Headers) -> None:
        """Check the route, then the credentials; their name goes into the scope's state, for logs and fairness."""
        path = scope["path"]
        _check_route(scope["method"], path)
        if self._password is None and path in (LOGIN, LOGOUT):
            raise Refused(404, "There is no password to enter.")
        if path in (HEALTH, LOGIN, LOGOUT):
            return
        is_operators = path in OPERATOR_ROUTES and bool(self._tokens)
        if self._password is None and not is_operators:
            return
        name = await self._credentials(scope, headers)
        if is_operators and name != "operator":
            raise Refused(403, "This is the operator's: it takes QLORA_CHAT_OPERATOR_TOKEN, set where the server is started.")
        if name.startswith(API_TOKEN) and not path.startswith(API):
            raise Refused(403, "This token is for chats and completions under /v1 only.")
        scope.setdefault("state", {})["token"] = name

    async def _credentials(self, scope: Scope, headers: Headers) -> str:
        """Name of the credentials that a request has. Refused with 401 without right ones."""
        if self._password and await self._password.has_session(headers):
            return "token"
        token = bearer_token(headers)
        if token and await self._guesses.check(scope.get("client"), token, self._tokens.values()):
            return next(name for name, each in self._tokens.items() if tokens_equal(token, each))
        needed = "A password is needed." if self._password else "The operator's token is needed."
        raise Refused(401, needed, {"www-authenticate": "Bearer"})

    def response(self, scope: Scope, refused: Refused) -> Response:
        """OpenAI's error format under /v1 and for unknown routes, the login form for the page, plain text elsewhere."""
        path, status = scope["path"], refused.status
        if path.startswith(API) or route_of(path) == "other":
            message, code = refused.message, None
            if status == 404:
                base_url = f"{scope.get('scheme', 'http')}://{Headers(scope=scope).get('host', 'localhost')}/v1"
                message, code = unknown_route(path, base_url)
            return JSONResponse(error_body(status, message, code), status, refused.headers)
        if path == "/" and status == 401:
            return HTMLResponse(login_page(), status)
        return PlainTextResponse(refused.message, status, refused.headers)


def _check_route(method: str, path: str) -> None:
    methods = _methods(path)
    if ".." in path.split("/") or "\\" in path or "\0" in path or "//" in path or not methods:
        raise Refused(404, "Not found.")
    if method not in methods:
        allowed = ", ".join(methods)
        raise Refused(405, f"{method[:20]} is not allowed here; this route takes {allowed}.", {"allow": allowed})


def _methods(path: str) -> tuple[str, ...]:
    """Methods that a path takes; none if it is unknown."""
    writes = ("POST",) if path in WRITES else ()
    if path.startswith(PAGE_STREAMS):
        return ("GET",)
    return (*(("GET", "HEAD") if path in READS or path.startswith(READ_PREFIXES) else ()), *writes)
