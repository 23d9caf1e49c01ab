"""Log lines and traces of requests have ids, sizes and times, never text."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import httpx
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.types import ASGIApp

from qlora_chat.server.site import Site
from qlora_chat.server.site_access import route_of
from qlora_chat.serving.metrics import Metrics
from qlora_chat.serving.request_log import RequestLog, log_requests_to, logger
from qlora_chat.serving.tracing import Tracer
from qlora_chat.settings import ServeSettings
from tests.fakes import ScriptedEngine, scripted_chat

SECRET = "my password is swordfish"


def open_site(answer: str = "Hello there.") -> Site:
    """The API over a scripted engine, without its page."""
    site = Site(ServeSettings())
    site.state.open(scripted_chat(ScriptedEngine(answer)))
    return site


def ask(app: ASGIApp, path: str = "/v1/completions", **headers: str) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return await client.post(path, json={"model": "scripted", "prompt": SECRET}, headers=named)

    return asyncio.run(send())


def logged(app: ASGIApp, path: str = "/v1/completions", **headers: str) -> str:
    """Log of one request."""
    written = io.StringIO()
    log_requests_to(written)
    try:
        ask(RequestLog(app, Metrics(), route_of, log=True), path, **headers)
    finally:
        logger.handlers = []
    return written.getvalue()


def test_a_line_of_json_holds_ids_sizes_and_times_and_no_text() -> None:
    line = json.loads(logged(open_site("And mine is hunter2.").api, x_request_id="abc-1"))
    assert line["id"] == "abc-1"
    assert (line["route"], line["method"], line["status"]) == ("/v1/completions", "POST", 200)
    assert (line["prompt_tokens"], line["completion_tokens"], line["finish"]) == (len(SECRET) + 1, 4, "stop")
    assert line["caller"].startswith("open@")
    assert line["ms"] >= 0
    assert not {"swordfish", "hunter2"} & set(json.dumps(line).replace(".", " ").split())


def test_a_hostile_path_or_id_is_not_written() -> None:
    written = logged(open_site().api, "/v1/%1b[31mred%0afake", x_request_id="x" * 100)
    assert len(written.splitlines()) == 1
    line = json.loads(written)
    assert line["route"] == "other"
    assert len(line["id"]) == 32


def test_an_exception_is_logged_by_type_and_line_without_its_message() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        raise RuntimeError(SECRET)

    written = logged(broken)
    assert "RuntimeError at " in written
    assert "swordfish" not in written


def test_the_id_is_returned_and_generated_if_there_is_none() -> None:
    app = RequestLog(open_site().api, Metrics(), route_of)
    assert ask(app, x_request_id="abc.1").headers["x-request-id"] == "abc.1"
    assert len(ask(app).headers["x-request-id"]) == 32
    assert len(ask(app, x_request_id="a b").headers["x-request-id"]) == 32


def test_a_trace_continues_the_clients_and_holds_counts_and_no_text() -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = RequestLog(open_site().api, Metrics(), route_of, tracer=Tracer(provider))
    ask(app, traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    (span,) = exporter.get_finished_spans()
    assert span.name == "POST /v1/completions"
    assert span.context
    assert f"{span.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert span.attributes
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["gen_ai.usage.output_tokens"] == 2
    assert "swordfish" not in span.to_json()
