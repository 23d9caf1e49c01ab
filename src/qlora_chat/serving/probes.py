"""Readiness of the server, and /health, /ready and /metrics for load balancers, orchestrators and Prometheus."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response

from qlora_chat.serving.metrics import CONTENT_TYPE, Metrics

HEALTH, READY, METRICS = "/health", "/ready", "/metrics"
NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {"description": "loading or draining", "content": {"text/plain": {"schema": {"type": "string"}}}}
}


class Lifecycle:
    """loading -> ready -> draining, never back. Requests are taken while it is ready."""

    def __init__(self) -> None:
        self.phase: Literal["loading", "ready", "draining"] = "loading"

    @property
    def ready(self) -> bool:
        """True if requests are taken."""
        return self.phase == "ready"

    def opened(self) -> None:
        """Take requests: the model is loaded. A draining server stays so."""
        if self.phase == "loading":
            self.phase = "ready"

    def drain(self) -> None:
        """Take no new requests; what runs goes on to its end."""
        self.phase = "draining"


def probes(lifecycle: Lifecycle, metrics: Metrics) -> APIRouter:
    """Routes of the three probes."""
    router = APIRouter()
    metrics.watch_ready(lambda: lifecycle.ready)

    @router.get(HEALTH, response_class=PlainTextResponse)
    async def health() -> PlainTextResponse:
        """200 as long as the process responds; the one route that never needs a token."""
        return PlainTextResponse("ok")

    @router.get(READY, response_class=PlainTextResponse, responses=NOT_READY)
    async def ready() -> PlainTextResponse:
        """200 once the weights are loaded, until shutdown begins."""
        return PlainTextResponse(lifecycle.phase, 200 if lifecycle.ready else 503)

    @router.get(METRICS, response_class=PlainTextResponse)
    async def prometheus() -> Response:
        """Metrics in Prometheus' text format."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    return router
