"""What is written of a request, and what is traced: ids, sizes and times, never text."""

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

from qlora_chat.server.access_control import route_of
from qlora_chat.server.site import Site
from qlora_chat.serving.metrics import Metrics
from qlora_chat.serving.request_log import Requests, log_requests_to, logger
from qlora_chat.serving.tracing import OpenTelemetry
from qlora_chat.settings import ServeSettings
from tests.fakes import ScriptedEngine, scripted_chat

SECRET = "my password is swordfish"


def site(answer: str = "Hello there.") -> Site:
    """The API over a scripted engine, without its page."""
    made = Site(ServeSettings())
    made.serving.open(scripted_chat(ScriptedEngine(answer)))
    return made


def ask(app: ASGIApp, path: str = "/v1/completions", **headers: str) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return await client.post(path, json={"model": "scripted", "prompt": SECRET}, headers=named)

    return asyncio.run(send())


def logged(app: ASGIApp, path: str = "/v1/completions", **headers: str) -> str:
    """What is written while a request is answered."""
    written = io.StringIO()
    log_requests_to(written)
    try:
        ask(Requests(app, Metrics(), route_of, log=True), path, **headers)
    finally:
        logger.handlers = []
    return written.getvalue()


def test_a_line_of_json_holds_ids_sizes_and_times_and_no_text() -> None:
    line = json.loads(logged(site("And mine is hunter2.").api, x_request_id="abc-1"))
    assert line["id"] == "abc-1"
    assert (line["route"], line["method"], line["status"]) == ("/v1/completions", "POST", 200)
    assert (line["prompt_tokens"], line["completion_tokens"], line["finish"]) == (len(SECRET) + 1, 4, "stop")
    assert line["caller"].startswith("open@")
    assert line["ms"] >= 0
    assert not {"swordfish", "hunter2"} & set(json.dumps(line).replace(".", " ").split())


def test_a_hostile_path_or_id_is_not_written() -> None:
    written = logged(site().api, "/v1/%1b[31mred%0afake", x_request_id="x" * 100)
    assert len(written.splitlines()) == 1
    line = json.loads(written)
    assert line["route"] == "other"
    assert len(line["id"]) == 32


def test_an_exception_is_logged_by_its_kind_and_place_without_its_message() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        raise RuntimeError(SECRET)

    written = logged(broken)
    assert "RuntimeError at " in written
    assert "swordfish" not in written


def test_the_id_comes_back_and_a_new_one_is_made_where_none_came() -> None:
    app = Requests(site().api, Metrics(), route_of)
    assert ask(app, x_request_id="abc.1").headers["x-request-id"] == "abc.1"
    assert len(ask(app).headers["x-request-id"]) == 32
    assert len(ask(app, x_request_id="a b").headers["x-request-id"]) == 32


def test_a_trace_continues_the_clients_and_holds_counts_and_no_text() -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = Requests(site().api, Metrics(), route_of, traces=OpenTelemetry(provider))
    ask(app, traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    (span,) = exporter.get_finished_spans()
    assert span.name == "POST /v1/completions"
    assert span.context
    assert f"{span.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert span.attributes
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["gen_ai.usage.output_tokens"] == 2
    assert "swordfish" not in span.to_json()
