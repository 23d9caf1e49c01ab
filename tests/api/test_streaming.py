"""Streams that wait: a comment keeps the connection alive, and what comes afterwards is as always."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from qlora_chat.api import streaming
from tests.web.serving import Served

HELLO: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "stream": True},
    "/v1/completions": {"model": "scripted", "prompt": "hi", "stream": True},
    "/v1/responses": {"model": "scripted", "input": "hi", "stream": True},
}


@pytest.fixture
def waiting(scripted: Served, monkeypatch: pytest.MonkeyPatch) -> Served:
    """A server whose engine gives no token before `go_on`, and whose comments come soon."""
    monkeypatch.setattr(streaming, "COMMENT_INTERVAL_S", 0.02)
    scripted.engine.pauses_after = 0
    return scripted


def lines_after_comments(served: Served, path: str) -> Iterator[str]:
    """Lines of a stream, once two comments have come and the engine went on."""
    with httpx.stream("POST", served.url + path, json=HELLO[path], timeout=60) as answer:
        assert answer.status_code == 200
        lines, comments = answer.iter_lines(), 0
        for line in lines:
            comments += line.startswith(":")
            if comments == 2:
                break
        served.engine.go_on.set()
        yield from (line for line in lines if line and not line.startswith(":"))


@pytest.mark.parametrize("path", HELLO)
def test_comments_come_before_the_first_token(waiting: Served, path: str) -> None:
    lines = list(lines_after_comments(waiting, path))
    text = "".join(lines)
    assert "scripted" in text
    assert lines[-1] == "data: [DONE]" or '"type":"response.completed"' in lines[-1]


def test_an_error_after_a_comment_is_an_event(waiting: Served) -> None:
    waiting.engine.fails_after = 0
    *_, event, done = lines_after_comments(waiting, "/v1/chat/completions")
    assert json.loads(event.removeprefix("data: "))["error"]["code"] == "generation_failed"
    assert done == "data: [DONE]"


def test_log_probabilities_that_an_engine_lacks_are_refused_late_too(waiting: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting.engine.answer = "a b"
    monkeypatch.setitem(HELLO["/v1/chat/completions"], "logprobs", True)
    *_, event, _ = lines_after_comments(waiting, "/v1/chat/completions")
    assert json.loads(event.removeprefix("data: "))["error"]["param"] == "logprobs"


def test_clients_read_past_comments(waiting: Served) -> None:
    waiting.engine.pauses_after, waiting.engine.delay = None, 0.1
    with openai.OpenAI(base_url=f"{waiting.url}/v1", api_key="none", max_retries=0) as client:
        chunks = list(client.chat.completions.create(**HELLO["/v1/chat/completions"]))
        assert "".join(each.choices[0].delta.content or "" for each in chunks) == "This is a scripted answer."
        with client.responses.stream(model="scripted", input="hi") as stream:
            assert stream.get_final_response().output_text == "This is a scripted answer."


@pytest.mark.parametrize("path", HELLO)
def test_comments_say_how_much_of_a_long_prompt_is_read(scripted: Served, path: str) -> None:
    scripted.engine.prefilled = (1, 3)
    with httpx.stream("POST", scripted.url + path, json=HELLO[path], timeout=60) as answer:
        lines = [line for line in answer.iter_lines() if line]
    comments = [line for line in lines if line.startswith(":")]
    total = len(scripted.engine.streams[-1].prompt.ids)
    assert comments[-1] == f": prefill 3/{total}"
    first_text = next(index for index, line in enumerate(lines) if "This" in line)
    assert lines.index(comments[-1]) < first_text


def test_clients_read_past_the_progress(scripted: Served) -> None:
    scripted.engine.prefilled = (1, 2, 3)
    client = openai.OpenAI(base_url=f"{scripted.url}/v1", api_key="none")
    events = client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "hi"}], stream=True)
    assert "".join(each.choices[0].delta.content or "" for each in events if each.choices) == "This is a scripted answer."
    whole = client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "hi"}])
    assert whole.choices[0].message.content == "This is a scripted answer."
