"""Around every HTTP request: its id, its count, its line in the log, its trace.

Scope: pure ASGI, outermost, so that refused requests are seen too. A line holds ids, sizes and times, never text; a path
that is not one of ours is only called "other".
"""

from __future__ import annotations

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
from qlora_chat.serving.tracing import NoTraces, Traces

SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE", "PATCH"})

logger = logging.getLogger("qlora_chat.requests")
LOST = 499
"""Counted where no answer was sent: the client left first."""


def note(scope: Scope, **facts: Any) -> None:
    """Facts about the answer for the request's line and trace: names of models, counts, reasons."""
    scope.setdefault("state", {}).setdefault("facts", {}).update(facts)


def caller_of(scope: Scope) -> str:
    """Who asks, for fairness and logs: the token's number, where one is needed, and the address."""
    client = scope.get("client")
    return f"{scope.get('state', {}).get('token', 'open')}@{client[0] if client else 'local'}"


class Requests:
    """Wraps an ASGI app. `route_of` names a path's route from a fixed set."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, route_of: Callable[[str], str], *, log: bool = False, traces: Traces | None = None
    ) -> None:
        self._app, self._metrics, self._route_of, self._log = app, metrics, route_of, log
        self._traces: Traces = traces or NoTraces()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, began = _request_id(scope), time.perf_counter()
        scope.setdefault("state", {})["request_id"] = request_id
        status, sent = LOST, 0

        async def watched(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            else:
                sent += len(message.get("body", b""))
            await send(message)

        route, method = self._route_of(scope["path"]), scope["method"] if scope["method"] in METHODS else "other"
        with self._traces.request(f"{method} {route}", scope) as trace:
            try:
                await self._app(scope, receive, watched)
            except Exception as problem:
                # Its message may quote the conversation, which has no place in an operator's log.
                self._metrics.errors.labels("internal").inc()
                logger.error("request %s ended with %s at %s", request_id, type(problem).__name__, _place_of(problem))
                if status == LOST:
                    raise
            finally:
                facts = scope["state"].get("facts", {})
                self._count(route, method, status)
                trace.end(status, request_id, facts)
                if self._log:
                    seconds = time.perf_counter() - began
                    self._write(request_id, route, method, status, seconds, sent, caller_of(scope), facts)

    def _count(self, route: str, method: str, status: int) -> None:
        self._metrics.requests.labels(route, method, str(status)).inc()
        if status >= 400:
            self._metrics.errors.labels(f"http_{status}").inc()

    @staticmethod
    def _write(
        request_id: str, route: str, method: str, status: int, seconds: float, sent: int, caller: str, facts: dict[str, Any]
    ) -> None:
        """One line of JSON: json.dumps escapes whatever control characters a value may hold."""
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": "request", "id": request_id,
            "method": method, "route": route, "status": status, "ms": round(seconds * 1000, 1), "bytes": sent, "caller": caller,
        }  # fmt: skip
        logger.info(json.dumps(line | facts))


def _place_of(problem: BaseException) -> str:
    """File and line that a problem comes from."""
    frames = traceback.extract_tb(problem.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "an unknown place"


def _request_id(scope: Scope) -> str:
    """The client's own X-Request-Id where it is a plain one, else a new one."""
    given = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"), "")
    return given if SANE_ID.fullmatch(given) else uuid.uuid4().hex


def log_requests_to(stream: Any) -> None:
    """Write the lines there."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)
