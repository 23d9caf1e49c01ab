"""Requests to routes that do not exist: the answer says what was meant, and which routes there are."""

from __future__ import annotations

import httpx
import openai
import pytest

from tests.web.serving import Served

HELLO = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("//v1//chat/completions", "/v1/chat/completions"),
        ("/v1//chat/completions", "/v1/chat/completions"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("/openai/v1/chat/completions", "/v1/chat/completions"),
        ("/openai/deployments/scripted/chat/completions", "/v1/chat/completions"),
        ("/V1/models", "/v1/models"),
        ("/completions", "/v1/completions"),
        ("/responses", "/v1/responses"),
        ("/models", "/v1/models"),
        ("/models/scripted", "/v1/models/scripted"),
    ],
)
def test_a_wrong_base_url_is_recognised(scripted: Served, path: str, meant: str) -> None:
    answer = httpx.post(scripted.url + path, json=HELLO, timeout=60)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (404, "unknown_route")
    assert f"did you mean {meant}?" in error["message"]
    assert f"{scripted.url}/v1" in error["message"]


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/v1/nowhere", "/nowhere", "/api/tags", "/v1/messages"])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
def test_an_unknown_route_lists_those_that_there_are(scripted: Served, path: str, method: str) -> None:
    answer = httpx.request(method, scripted.url + path, timeout=60)
    message = answer.json()["error"]["message"]
    assert answer.status_code == 404
    for route in ("GET /v1/models", "POST /v1/chat/completions", "POST /v1/completions", "POST /v1/responses"):
        assert route in message


def test_what_openai_has_and_this_server_lacks_is_said(scripted: Served) -> None:
    with openai.OpenAI(base_url=f"{scripted.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.NotFoundError, match="Embeddings are not supported") as refused:
            client.embeddings.create(model="scripted", input="hi")
        assert refused.value.code == "unsupported_route"
        with pytest.raises(openai.NotFoundError, match="previous_response_id"):
            client.responses.retrieve("resp_1")
        with pytest.raises(openai.NotFoundError, match="Files are not supported"):
            client.files.list()
        with pytest.raises(openai.NotFoundError, match="Images are not supported"):
            client.images.generate(model="scripted", prompt="hi")


def test_a_wrong_method_is_told_the_right_one(scripted: Served) -> None:
    answer = httpx.get(f"{scripted.url}/v1/chat/completions", timeout=60)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert "POST" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/openapi.json", "/v1/models", "/v1/models/scripted", "/"])
def test_head_answers_as_get_without_a_body(scripted: Served, path: str) -> None:
    head, get = (httpx.request(method, scripted.url + path, timeout=60) for method in ("HEAD", "GET"))
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


def test_a_stream_without_end_takes_no_head(scripted: Served) -> None:
    answer = httpx.head(f"{scripted.url}/gradio_api/heartbeat/x", timeout=60)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")
