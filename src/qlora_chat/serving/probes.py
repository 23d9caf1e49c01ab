"""/health, /ready and /metrics: for load balancers, orchestrators and Prometheus."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response

from qlora_chat.serving.lifecycle import Lifecycle
from qlora_chat.serving.metrics import CONTENT_TYPE, Metrics

HEALTH, READY, METRICS = "/health", "/ready", "/metrics"
NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {"description": "loading or draining", "content": {"text/plain": {"schema": {"type": "string"}}}}
}


def probes(lifecycle: Lifecycle, metrics: Metrics) -> APIRouter:
    """The routes. Health says that the process answers; readiness, that it takes requests."""
    router = APIRouter()
    metrics.watch_ready(lambda: lifecycle.ready)

    @router.get(HEALTH, response_class=PlainTextResponse)
    async def health() -> PlainTextResponse:
        """200 as long as the process answers; the one route that never needs a token."""
        return PlainTextResponse("ok")

    @router.get(READY, response_class=PlainTextResponse, responses=NOT_READY)
    async def ready() -> PlainTextResponse:
        """200 once the weights are loaded, until the server is asked to end."""
        return PlainTextResponse(lifecycle.phase, 200 if lifecycle.ready else 503)

    @router.get(METRICS, response_class=PlainTextResponse)
    async def prometheus() -> Response:
        """Counts in Prometheus' text format."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    return router
