"""The API under load and at its edges: queue, errors of the engine, clients that leave, counts, adapters by name."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import pytest

from qlora_chat.settings import ServeSettings
from tests.fakes import LetterTokenizer, ScriptedEngine
from tests.web.serving import Served, serving

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def served() -> Iterator[Served]:
    """A server for this test: two slots, a queue of three."""
    engine = ScriptedEngine("one two three four")
    engine.slots = 2
    with serving(engine, ServeSettings(queue=3, most_tokens=100)) as served:
        yield served


def metrics(served: Served) -> dict[str, float]:
    lines = httpx.get(f"{served.url}/metrics", timeout=60).text.splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))}


def until(true: Callable[[], bool], seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def readers() -> int:
    return sum(thread.name == "qlora-chat-read" for thread in threading.enumerate())


def test_overflow_gets_a_time_to_retry_and_the_rest_is_answered(served: Served) -> None:
    served.engine.pauses_after = 1
    with httpx.Client(base_url=served.url, timeout=60) as client, ThreadPoolExecutor(12) as pool:
        requests = [pool.submit(client.post, CHAT, json=HELLO) for _ in range(12)]
        assert until(lambda: sum(each.done() for each in requests) == 7), "all but two that run and three that wait"
        served.engine.go_on.set()
        answers = [each.result() for each in requests]
    by_status = {status: [each for each in answers if each.status_code == status] for status in (200, 429)}
    assert (len(by_status[200]), len(by_status[429])) == (5, 7)
    for each in by_status[429]:
        assert int(each.headers["retry-after"]) >= 1
        assert each.json()["error"]["code"] == "rate_limit_exceeded"
    counted = metrics(served)
    assert counted['qlora_chat_answers_total{reason="stop"}'] == len(by_status[200])
    assert counted['qlora_chat_errors_total{kind="overloaded"}'] == len(by_status[429])
    assert counted[f'qlora_chat_http_requests_total{{method="POST",route="{CHAT}",status="200"}}'] == len(by_status[200])
    assert counted["qlora_chat_completion_tokens_total"] == 4 * len(by_status[200])
    assert counted["qlora_chat_time_to_first_token_seconds_count"] == len(by_status[200])
    assert (counted["qlora_chat_running"], counted["qlora_chat_waiting"], counted["qlora_chat_slots"]) == (0, 0, 2)


def test_an_engine_that_fails_is_a_503_and_the_next_request_succeeds(served: Served) -> None:
    served.engine.fails_after = 0
    answer = httpx.post(served.url + CHAT, json=HELLO, timeout=60)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "generation_failed"
    served.engine.fails_after = None
    assert httpx.post(served.url + CHAT, json=HELLO, timeout=60).status_code == 200


def test_an_error_in_mid_stream_is_an_event_and_the_stream_still_ends(served: Served) -> None:
    served.engine.fails_after, served.engine.delay = 2, 0.02
    with httpx.stream("POST", served.url + CHAT, json=HELLO | {"stream": True}, timeout=60) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert answer.status_code == 200
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == "generation_failed"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot_at_once(served: Served, stream: bool) -> None:
    served.engine.answer, served.engine.pauses_after = "word " * 500, 3
    patience = httpx.Timeout(60, read=60 if stream else 0.5)
    for _ in range(4):
        try:
            with httpx.stream("POST", served.url + CHAT, json=HELLO | {"stream": stream}, timeout=patience) as answer:
                for _line in answer.iter_lines():
                    break
        except httpx.ReadTimeout:
            assert not stream
        assert until(lambda: served.engine.streams[-1].reason == "cancelled")
    assert until(lambda: readers() == 0), "no thread is left"
    assert metrics(served)["qlora_chat_running"] == 0


def test_a_request_that_leaves_the_queue_is_never_computed(served: Served) -> None:
    served.engine.answer, served.engine.pauses_after = "word " * 40, 3
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(httpx.post, served.url + CHAT, json=HELLO, timeout=60) for _ in range(2)]
        assert until(lambda: len(served.engine.streams) == 2)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(served.url + CHAT, json=HELLO, timeout=httpx.Timeout(60, read=0.3))
        assert until(lambda: metrics(served)["qlora_chat_waiting"] == 0)
        served.engine.go_on.set()
        assert all(each.result().status_code == 200 for each in running)
    assert len(served.engine.streams) == 2


def test_a_request_beyond_the_servers_token_limit_is_refused(served: Served) -> None:
    answer = httpx.post(served.url + CHAT, json=HELLO | {"max_tokens": 101}, timeout=60)
    assert answer.status_code == 400
    assert "at most 100" in answer.json()["error"]["message"]
    httpx.post(served.url + CHAT, json=HELLO, timeout=60)
    assert served.engine.streams[-1].sampling.max_new_tokens == 100


def test_an_engine_without_log_probabilities_says_so(served: Served) -> None:
    served.engine.answer = "a b"
    answer = httpx.post(served.url + CHAT, json=HELLO | {"logprobs": True}, timeout=60)
    assert answer.status_code == 400
    assert "no log probabilities" in answer.json()["error"]["message"]


def test_the_time_limit_ends_an_answer_where_it_is() -> None:
    with serving(ScriptedEngine("word " * 500, delay=0.02), ServeSettings(request_seconds=1.0)) as served:
        answer = httpx.post(served.url + CHAT, json=HELLO, timeout=60).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert 5 < answer["usage"]["completion_tokens"] < 60


def test_an_adapter_is_a_model_by_its_own_name() -> None:
    engine = ScriptedEngine()
    engine.info = replace(engine.info, adapter=None, adapters=("guanaco", "pirate"))
    with serving(engine) as served:
        listed = httpx.get(f"{served.url}/v1/models", timeout=60).json()["data"]
        assert [(each["id"], each["parent"]) for each in listed] == [
            ("scripted", None), ("guanaco", "scripted"), ("pirate", "scripted"),
        ]  # fmt: skip
        for model, adapter in (("scripted", None), ("guanaco", "guanaco"), ("pirate", "pirate")):
            assert httpx.post(served.url + CHAT, json=HELLO | {"model": model}, timeout=60).json()["model"] == model
            assert engine.adapters_asked[-1] == adapter
        refused = httpx.post(f"{served.url}/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "/nowhere"}, timeout=60)
        assert refused.status_code == 400, "this engine takes none"
        assert httpx.post(f"{served.url}/v1/unload_lora_adapter", json={"lora_name": "x"}, timeout=60).status_code == 404


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": "a" * 1_900_000}]}),
        ("completions", {"prompt": ["hi", "a" * 1_900_000]}),
    ],
)
def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenised(
    served: Served, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    def encode(self: LetterTokenizer, text: str) -> list[int]:
        raise AssertionError("the text was tokenised")

    monkeypatch.setattr(LetterTokenizer, "encode", encode)
    refused = httpx.post(f"{served.url}/v1/{path}", json={"model": "scripted", **body}, timeout=60)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert "at least 118,750" in refused.json()["error"]["message"]


def test_a_client_can_have_its_own_beginning_of_an_answer_continued(served: Served) -> None:
    served.engine.answer = "  three four "
    begun = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "One two"}]
    body = {"model": "scripted", "messages": begun, "continue_final_message": True, "add_generation_prompt": False}
    answer = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60).json()
    assert served.engine.streams[-1].prompt.text == "### Human: Count.### Assistant: One two"
    assert answer["choices"][0]["message"]["content"] == "  three four", "white space between the two parts is the client's"
    for wrong, field in (
        (body | {"add_generation_prompt": True}, "continue_final_message"),
        (body | {"continue_final_message": False}, "add_generation_prompt"),
        (body | {"messages": begun[:1]}, "messages"),
        ({"model": "scripted", "messages": begun}, "messages"),
    ):
        refused = httpx.post(f"{served.url}/v1/chat/completions", json=wrong, timeout=60)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, field)
