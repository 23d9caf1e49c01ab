"""Readiness and metrics of one server, and /health, /ready and /metrics for load balancers, orchestrators and Prometheus.

Scope: names, units and labels, and the three routes, which answer before there is a model. Labels are routes, reasons and kinds
from fixed sets: nothing that a client sends becomes one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from qlora_chat.engines import Finish
from qlora_chat.serving.admission import Gate

HEALTH, READY, METRICS = "/health", "/ready", "/metrics"
NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {"description": "loading or draining", "content": {"text/plain": {"schema": {"type": "string"}}}}
}
Phase = Literal["loading", "ready", "draining"]
"""Of a server: one after the other, never back. Requests are taken while it is ready."""
SECONDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
RATES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)

disable_created_metrics()  # one more series per metric, which nobody reads


class Metrics:
    """Metrics of one server; safe from any thread."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(f"qlora_chat_{name}", help, labels, registry=registry)

        def histogram(name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"qlora_chat_{name}", help, registry=registry, buckets=buckets)

        self.requests = counter("http_requests", "HTTP requests answered", "route", "method", "status")
        self.errors = counter("errors", "requests and answers that failed", "kind")
        self._answers = counter("answers", "answers that ended", "reason")
        self._prompt_tokens = counter("prompt_tokens", "tokens of prompts")
        self._cached_tokens = counter("cached_prompt_tokens", "prompt tokens whose keys and values were still in the cache")
        self._cache_hits = counter("cache_hits", "answers that found a part of their prompt in the cache")
        self._completion_tokens = counter("completion_tokens", "tokens generated")
        self.first_token_seconds = histogram("time_to_first_token_seconds", "to the first token, queue included", SECONDS)
        self.queue_seconds = histogram("queue_seconds", "from a request to its start", SECONDS)
        self._rates = histogram("tokens_per_second", "of one answer, after its first token", RATES)

    def watch_ready(self, ready: Callable[[], bool]) -> None:
        """Read readiness from this function."""
        self._watch("qlora_chat_ready", "1 while requests are taken", ready)

    def watch_gate(self, gate: Gate) -> None:
        """Read queue and slots from this gate."""
        for name, help, read in (
            ("running", "answers being written", lambda: gate.running),
            ("waiting", "requests in the queue", lambda: gate.waiting),
            ("slots", "answers that can be written at once", lambda: gate.slots),
            ("queue_limit", "requests that can wait", lambda: gate.queue_limit),
        ):
            self._watch(f"qlora_chat_{name}", help, read)

    def watch_outbox(self, depth: Callable[[], int]) -> None:
        """Read the number of turns that wait for delivery from this function."""
        self._watch("qlora_chat_outbox_depth", "turns that wait to be delivered to LOGGING_URL", depth)

    def _watch(self, name: str, help: str, read: Callable[[], float]) -> None:
        Gauge(name, help, registry=self._registry).set_function(lambda: float(read()))

    def finished(self, finish: Finish) -> None:
        """Count an answer that ended without an error."""
        self._answers.labels(finish.reason).inc()
        self._prompt_tokens.inc(finish.prompt_tokens)
        self._cached_tokens.inc(finish.cached_tokens)
        self._cache_hits.inc(finish.cached_tokens > 0)
        self._completion_tokens.inc(finish.completion_tokens)
        if finish.tokens_per_s is not None:
            self._rates.observe(finish.tokens_per_s)

    def failed(self, kind: str) -> None:
        """Count an answer that ended with an error of this kind."""
        self._answers.labels("error").inc()
        self.errors.labels(kind).inc()

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)


def probes(phase: Callable[[], Phase], metrics: Metrics) -> APIRouter:
    """Routes of the three probes."""
    router = APIRouter()
    metrics.watch_ready(lambda: phase() == "ready")

    @router.get(HEALTH, response_class=PlainTextResponse)
    async def health() -> PlainTextResponse:
        """200 as long as the process responds; the one route that never needs a token."""
        return PlainTextResponse("ok")

    @router.get(READY, response_class=PlainTextResponse, responses=NOT_READY)
    async def ready() -> PlainTextResponse:
        """200 once the weights are loaded, until shutdown begins."""
        return PlainTextResponse(phase(), 200 if phase() == "ready" else 503)

    @router.get(METRICS, response_class=PlainTextResponse)
    async def prometheus() -> Response:
        """Metrics in Prometheus' text format."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router
