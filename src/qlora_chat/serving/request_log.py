"""Id, count, log line and trace of every HTTP request.

Scope: pure ASGI, outermost, so that refused requests are included. A line has ids, sizes and times, never text; an unknown
path is logged as "other".
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
import traceback
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qlora_chat.serving.metrics import Metrics
from qlora_chat.serving.tracing import Tracer, set_outcome

PLAIN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE", "PATCH"})

logger = logging.getLogger("qlora_chat.requests")
CLIENT_LEFT = 499
"""Status in logs and metrics if the client left before a response; nginx uses the same number."""


def add_log_fields(scope: Scope, **fields: Any) -> None:
    """Add fields to the request's log line and trace: model, counts, finish reasons."""
    scope.setdefault("state", {}).setdefault("log_fields", {}).update(fields)


API_TOKEN = "api-token"
"""Begin of the names of callers who have a token of their own for the API."""


def caller_of(scope: Scope) -> str:
    """Identity of the client for fairness and logs: the token's number, if tokens are needed, and the address."""
    client = scope.get("client")
    return f"{scope.get('state', {}).get('token', 'open')}@{client[0] if client else 'local'}"


class RequestLog:
    """Wraps an ASGI app. `route_of` maps a path to one of a fixed set of routes."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, route_of: Callable[[str], str], *, log: bool = False, tracer: Tracer | None = None
    ) -> None:
        self._app, self._metrics, self._route_of, self._log = app, metrics, route_of, log
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, start = _request_id(scope), time.perf_counter()
        scope.setdefault("state", {})["request_id"] = request_id
        status, sent = CLIENT_LEFT, 0

        async def counted(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            else:
                sent += len(message.get("body", b""))
            await send(message)

        route, method = self._route_of(scope["path"]), scope["method"] if scope["method"] in METHODS else "other"
        with self._tracer.request(f"{method} {route}", scope) if self._tracer else contextlib.nullcontext() as span:
            try:
                await self._app(scope, receive, counted)
            except Exception as problem:
                # Its message may quote the conversation, which has no place in an operator's log.
                self._metrics.errors.labels("internal").inc()
                logger.error("request %s ended with %s at %s", request_id, type(problem).__name__, _origin(problem))
                if status == CLIENT_LEFT:
                    raise
            finally:
                fields = scope["state"].get("log_fields", {})
                self._count(route, method, status)
                if span:
                    set_outcome(span, status, request_id, fields)
                if self._log:
                    line = {
                        "time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": "request", "id": request_id,
                        "method": method, "route": route, "status": status,
                        "ms": round((time.perf_counter() - start) * 1000, 1), "bytes": sent, "caller": caller_of(scope),
                    }  # fmt: skip
                    logger.info(json.dumps(line | fields))  # escapes any control characters

    def _count(self, route: str, method: str, status: int) -> None:
        self._metrics.requests.labels(route, method, str(status)).inc()
        if status >= 400:
            self._metrics.errors.labels(f"http_{status}").inc()


def _origin(problem: BaseException) -> str:
    """File and line that raised the exception."""
    frames = traceback.extract_tb(problem.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "an unknown place"


def _request_id(scope: Scope) -> str:
    """The client's X-Request-Id if it is plain, else a new id."""
    sent = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"), "")
    return sent if PLAIN_ID.fullmatch(sent) else uuid.uuid4().hex


def log_requests_to(stream: Any) -> None:
    """Write the lines to a text stream."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)
