"""OpenTelemetry traces, if the extra is installed and the settings have an endpoint.

Scope: one span per request, with the names of OpenTelemetry's conventions for HTTP and generative AI. Spans have ids, counts
and times, never text. Nothing is sent unless OTEL_EXPORTER_OTLP_ENDPOINT (or its traces variant) says where.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Scope

from qlora_chat import __version__
from qlora_chat.settings import SettingsError

ATTRIBUTES = {
    "model": "gen_ai.request.model", "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens", "finish": "gen_ai.response.finish_reasons",
}  # fmt: skip


class Tracer:
    """One span per request, by an OpenTelemetry tracer provider."""

    def __init__(self, provider: Any) -> None:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer = provider.get_tracer("qlora_chat", __version__)
        self._propagator, self._server = TraceContextTextMapPropagator(), SpanKind.SERVER

    @contextlib.contextmanager
    def request(self, name: str, scope: Scope) -> Iterator[Any]:
        """Server span; a traceparent header makes it a child of the client's."""
        parent = self._propagator.extract(Headers(scope=scope))
        with self._tracer.start_as_current_span(name, parent, self._server, record_exception=False) as span:
            method, _, route = name.partition(" ")
            span.set_attributes({"http.request.method": method, "http.route": route})
            yield span


def set_outcome(span: Any, status: int, request_id: str, fields: Mapping[str, Any]) -> None:
    """Add a request's outcome to its span; `fields` are those of its log line."""
    from opentelemetry.trace import Status, StatusCode

    span.set_attributes({"http.response.status_code": status, "qlora_chat.request_id": request_id})
    span.set_attributes({ATTRIBUTES[name]: value for name, value in fields.items() if name in ATTRIBUTES})
    if status >= 500:
        span.set_status(Status(StatusCode.ERROR))


def open_tracer(endpoint: str | None) -> Tracer | None:
    """Tracer for the endpoint of OpenTelemetry's own variables (the exporter reads them itself); None without one.

    SettingsError if an endpoint is set and the extra is not installed.
    """
    if endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise SettingsError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but traces need an extra: pip install 'qlora-chat[tracing]', or unset it"
        ) from None
    provider = TracerProvider(resource=Resource.create({"service.name": "qlora-chat", "service.version": __version__}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracer(provider)
