"""Messages about invalid requests: in words, with the field's name, and without a word about validators."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from tests.web.serving import Served

CHAT, COMPLETION, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
HELLO: dict[str, dict[str, Any]] = {
    CHAT: {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]},
    COMPLETION: {"model": "scripted", "prompt": "hi"},
    RESPONSES: {"model": "scripted", "input": "hi"},
}
INTERNAL = re.compile(r"0x|function-|constrained|list\[|pydantic|_refuse|Input should|validation|\bstr\b|\bdict\b")


def message_with(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


@pytest.mark.parametrize(
    ("path", "change", "param", "words"),
    [
        (CHAT, {"stop": ""}, "stop", "text of 0 characters: it must have at least 1 character"),
        (CHAT, {"stop": 5}, "stop", "must be a text of 1 to 256 characters, or a list"),
        (CHAT, {"stop": ["a", 5]}, "stop.1", "is 5: it must be a text"),
        (CHAT, {"stop": ["a", ""]}, "stop.1", "at least 1 character"),
        (CHAT, {"stop": ["a"] * 17}, "stop", "at most 16 entries"),
        (CHAT, message_with(5), "messages.0.content", "must be a text, or a list of text parts"),
        (CHAT, message_with([5]), "messages.0.content.0", "is 5: it must be an object"),
        (CHAT, message_with([{"type": "image_url"}]), "messages.0.content.0", "image_url parts are not supported"),
        (CHAT, message_with([{"type": "text"}]), "messages.0.content.0.text", "is missing"),
        (CHAT, message_with("\ud800"), "messages.0.content", "half a character"),
        (CHAT, {"messages": [{"role": "robot", "content": ""}]}, "messages.0.role", "must be 'system', 'developer', 'user', "),
        (CHAT, {"messages": "hi"}, "messages", "is a text of 2 characters: it must be a list"),
        (CHAT, {"messages": None}, "messages", "is missing"),
        (CHAT, {"temperature": 3}, "temperature", "is 3: it must be at most 2"),
        (CHAT, {"temperature": "hot"}, "temperature", "must be a number"),
        (CHAT, {"stream": 1}, "stream", "is 1: it must be true or false"),
        (CHAT, {"max_tokens": 1.5}, "max_tokens", "must be a whole number"),
        (CHAT, {"stream": True, "stream_options": []}, "stream_options", "is a list: it must be an object"),
        (COMPLETION, {"prompt": 5}, "prompt", "must be a text, a list of token ids"),
        (COMPLETION, {"prompt": [None]}, "prompt.0", "is null: it must be a text, a token id or a list of token ids"),
        (COMPLETION, {"prompt": ["a", 1]}, "prompt.1", "is 1: it must be a text, as the first is"),
        (COMPLETION, {"prompt": [1, "a"]}, "prompt.1", "must be a token id, which is a whole number, as the first is"),
        (COMPLETION, {"prompt": [[1], 2]}, "prompt.1", "is 2: it must be a list of token ids, as the first is"),
        (COMPLETION, {"prompt": [[1, "a"]]}, "prompt.0.1", "must be a token id, which is a whole number"),
        (COMPLETION, {"prompt": [[1], [True]]}, "prompt.1.0", "is true: it must be a token id"),
        (COMPLETION, {"prompt": [[[1]]]}, "prompt.0.0", "is a list: it must be a token id"),
        (COMPLETION, {"prompt": [[1], [-1]]}, "prompt.1.0", "is -1: it must be at least 0"),
        (COMPLETION, {"prompt": [-1]}, "prompt.0", "is -1: it must be at least 0"),
        (COMPLETION, {"prompt": [[]]}, "prompt.0", "at least 1 entry"),
        (RESPONSES, {"input": {}}, "input", "must be a text, or a list of messages"),
        (RESPONSES, {"input": [5]}, "input.0", "is 5: it must be an object"),
        (RESPONSES, {"input": [{"role": "user", "content": 5}]}, "input.0.content", "must be a text, or a list of text parts"),
        (RESPONSES, {"input": [{"role": "user", "content": [5]}]}, "input.0.content.0", "is 5: it must be an object"),
        (CHAT, {"tools": [{}]}, "tools.0.type", "is missing"),
        (CHAT, {"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "set tool_choice to"),
        (CHAT, {"tool_choice": 5}, "tool_choice", 'must be "none", "auto", "required", or {"type": "function"'),
        (CHAT, {"response_format": {"type": "yaml"}}, "response_format.type", "must be 'text', 'json_object' or 'json_schema'"),
        (CHAT, {"functions": [{}]}, "functions", "send tools and tool_choice"),
    ],
)  # fmt: skip
def test_an_invalid_field_is_named_and_explained(
    scripted: Served, path: str, change: dict[str, Any], param: str, words: str
) -> None:
    body = json.dumps(HELLO[path] | change)
    answer = httpx.post(scripted.url + path, content=body, headers={"content-type": "application/json"}, timeout=60)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert words in error["message"]
    assert not INTERNAL.search(error["message"])


@pytest.mark.parametrize("path", HELLO)
def test_null_means_the_default_for_every_field(scripted: Served, path: str) -> None:
    schemas = httpx.get(f"{scripted.url}/openapi.json", timeout=60).json()["components"]["schemas"]
    name = {CHAT: "ChatRequest", COMPLETION: "CompletionRequest", RESPONSES: "ResponsesRequest"}[path]
    fields = {each for each in schemas[name]["properties"] if each not in schemas[name]["required"]}
    assert len(fields) > 8
    for field in fields:
        assert {"type": "null"} in schemas[name]["properties"][field].get("anyOf", [{"type": "null"}])
    nulls = dict.fromkeys([*fields, "tools", "logit_bias", "response_format", "unknown"])
    answer = httpx.post(scripted.url + path, json=HELLO[path] | nulls, timeout=60)
    assert answer.status_code == 200, answer.text
    assert "x-ignored-fields" not in answer.headers
    httpx.post(scripted.url + path, json=HELLO[path] | {"temperature": 0.0}, timeout=60)
    assert [stream.sampling.temperature for stream in scripted.engine.streams] == [0.7, 0.0]


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
def test_a_missing_or_other_content_type_is_named(scripted: Served, kind: str | None) -> None:
    headers = {"content-type": kind} if kind else {}
    request = httpx.Request("POST", scripted.url + CHAT, content=b'{"model": "scripted"}', headers=headers)
    with httpx.Client(timeout=60) as client:
        answer = client.send(request)
    message = answer.json()["error"]["message"]
    assert answer.status_code == 415
    assert "Content-Type: application/json" in message
    assert kind is None or kind in message


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "APPLICATION/JSON"])
def test_json_is_json_with_parameters_too(scripted: Served, kind: str) -> None:
    body = b'{"model": "scripted", "prompt": "hi"}'
    assert httpx.post(scripted.url + COMPLETION, content=body, headers={"content-type": kind}, timeout=60).status_code == 200


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no body"),
        (b"{,}", "at character 2"),
        (b"[]", "a list"),
        (b"null", "is null"),
        (b'{"model": "caf\xe9"}', "is not UTF-8 at byte 15"),
        (b'{"model": ' + b"[" * 100_000, "not valid JSON|nested too deeply"),
    ],
)
def test_a_body_that_is_no_object_is_explained(scripted: Served, body: bytes, words: str) -> None:
    answer = httpx.post(scripted.url + CHAT, content=body, headers={"content-type": "application/json"}, timeout=60)
    assert answer.status_code == 400
    assert re.search(words, answer.json()["error"]["message"])
