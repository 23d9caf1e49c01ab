"""OpenTelemetry traces, where the extra is installed and settings name an endpoint; nothing otherwise.

Scope: a span a request, with the names of OpenTelemetry's conventions for HTTP and generative AI. Spans carry ids, counts
and times, never text. Nothing is sent unless OTEL_EXPORTER_OTLP_ENDPOINT (or its traces variant) says where to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from starlette.types import Scope

from qlora_chat import __version__
from qlora_chat.settings import SettingsError

FACTS = {
    "model": "gen_ai.request.model", "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens", "finish": "gen_ai.response.finish_reasons",
}  # fmt: skip


class Trace(Protocol):
    """One request's."""

    def end(self, status: int, request_id: str, facts: Mapping[str, Any]) -> None:
        """What became of it."""
        ...


class Traces(Protocol):
    """Makes a trace a request."""

    def request(self, name: str, scope: Scope) -> AbstractContextManager[Trace]:
        """Around a request."""
        ...


class NoTraces:
    """Traces nothing."""

    @contextlib.contextmanager
    def request(self, name: str, scope: Scope) -> Iterator[NoTraces]:
        """Around a request: nothing."""
        yield self

    def end(self, status: int, request_id: str, facts: Mapping[str, Any]) -> None:
        """Forget it."""


class OpenTelemetry:
    """Traces to an OpenTelemetry tracer provider."""

    def __init__(self, provider: Any) -> None:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer = provider.get_tracer("qlora_chat", __version__)
        self._propagator, self._server = TraceContextTextMapPropagator(), SpanKind.SERVER

    @contextlib.contextmanager
    def request(self, name: str, scope: Scope) -> Iterator[_Span]:
        """A server span; a traceparent header makes it a child of the client's."""
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        parent = self._propagator.extract(headers)
        with self._tracer.start_as_current_span(name, parent, self._server, record_exception=False) as span:
            method, _, route = name.partition(" ")
            span.set_attributes({"http.request.method": method, "http.route": route})
            yield _Span(span)


class _Span:
    def __init__(self, span: Any) -> None:
        self._span = span

    def end(self, status: int, request_id: str, facts: Mapping[str, Any]) -> None:
        from opentelemetry.trace import Status, StatusCode

        self._span.set_attributes({"http.response.status_code": status, "qlora_chat.request_id": request_id})
        self._span.set_attributes({FACTS[name]: value for name, value in facts.items() if name in FACTS})
        if status >= 500:
            self._span.set_status(Status(StatusCode.ERROR))


def open_traces(endpoint: str | None) -> Traces:
    """Traces to the endpoint that OpenTelemetry's own variables name (the exporter reads them itself); none without one.

    SettingsError where an endpoint is set and the extra is not installed.
    """
    if endpoint is None:
        return NoTraces()
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
    return OpenTelemetry(provider)
