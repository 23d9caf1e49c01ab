"""/v1/responses as the openai client uses it: whole, streamed, continued, stored, and refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from qlora_chat.chat import Chat
from qlora_chat.history import HistoryUnavailable
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.prompt import DEFAULT_FORMAT
from tests.fakes import ScriptedEngine, ScriptedRecorder
from tests.web.serving import Served, serving_chat

ROUTE = "/v1/responses"


@pytest.fixture
def client(scripted: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{scripted.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def prompt_of(served: Served) -> str:
    return served.engine.streams[-1].prompt.text


def test_a_text_is_answered_with_counts(client: openai.OpenAI) -> None:
    response = client.responses.create(model="scripted", input="hi")
    assert response.output_text == "This is a scripted answer."
    assert (response.status, response.error, response.incomplete_details) == ("completed", None, None)
    assert response.usage
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert response.usage.output_tokens_details.reasoning_tokens == 0


def test_fields_reach_the_engine_and_come_back(client: openai.OpenAI, scripted: Served) -> None:
    response = client.responses.create(
        model="scripted", instructions="Be brief.", max_output_tokens=9, temperature=0.25, top_p=0.5, metadata={"case": "7"},
        input=[
            {"role": "developer", "content": "Speak English."},
            {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        ],
    )  # fmt: skip
    sampling = scripted.engine.streams[-1].sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_new_tokens) == (0.25, 0.5, 9)
    assert prompt_of(scripted).startswith("Be brief.\n\nSpeak English.")
    assert (response.temperature, response.top_p, response.max_output_tokens) == (0.25, 0.5, 9)
    assert (response.instructions, response.metadata) == ("Be brief.", {"case": "7"})


def test_a_stream_has_the_events_of_openais_format_in_order(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="scripted", input="hi", stream=True))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == (
        "This is a scripted answer."
    )


def test_the_stream_helper_collects_the_response(client: openai.OpenAI) -> None:
    with client.responses.stream(model="scripted", input="hi") as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        response = stream.get_final_response()
    assert response.output_text == text == "This is a scripted answer."
    assert response.usage
    assert response.usage.output_tokens == 5


def test_an_answer_continues_another_by_its_id(client: openai.OpenAI, scripted: Served) -> None:
    first = client.responses.create(model="scripted", input="My name is Ada.", instructions="Be brief.")
    second = client.responses.create(model="scripted", input="And now?", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    prompt = prompt_of(scripted)
    assert prompt.index("My name is Ada.") < prompt.index("This is a scripted answer.") < prompt.index("And now?")
    assert "Be brief." not in prompt, "instructions hold for one answer"
    client.responses.create(model="scripted", input="Then?", previous_response_id=second.id)
    assert prompt_of(scripted).count("### Human:") == 3


def test_a_system_message_of_the_input_holds_for_what_follows(client: openai.OpenAI, scripted: Served) -> None:
    messages: Any = [{"role": "system", "content": "Always."}, {"role": "user", "content": "a"}]
    first = client.responses.create(model="scripted", instructions="Once.", input=messages)
    client.responses.create(model="scripted", input="b", previous_response_id=first.id, instructions="Now.")
    assert prompt_of(scripted).startswith("Now.\n\nAlways.")


def test_a_streamed_answer_can_be_continued_too(client: openai.OpenAI, scripted: Served) -> None:
    *_, last = client.responses.create(model="scripted", input="one", stream=True)
    assert last.type == "response.completed"
    client.responses.create(model="scripted", input="two", previous_response_id=last.response.id)
    assert "one" in prompt_of(scripted)


def test_output_items_and_references_to_them_can_be_sent_back(client: openai.OpenAI, scripted: Served) -> None:
    first = client.responses.create(model="scripted", input="one")
    (item,) = first.output
    for sent in (item.model_dump(), {"type": "item_reference", "id": item.id}):
        conversation: Any = [{"role": "user", "content": "one"}, sent, {"role": "user", "content": "two"}]
        client.responses.create(model="scripted", input=conversation)
        prompt = prompt_of(scripted)
        assert prompt.index("one") < prompt.index("This is a scripted answer.") < prompt.index("two")


def test_nothing_is_remembered_of_an_answer_that_is_not_to_be(client: openai.OpenAI) -> None:
    first = client.responses.create(model="scripted", input="one", store=False)
    with pytest.raises(openai.BadRequestError, match="no such response") as refused:
        client.responses.create(model="scripted", input="two", previous_response_id=first.id)
    assert (refused.value.param, refused.value.code) == ("previous_response_id", "previous_response_not_found")


def test_a_stored_answer_is_in_the_history_and_continues_there() -> None:
    engine, history, recorder = ScriptedEngine("An answer."), MemoryHistory(), ScriptedRecorder()
    with (
        serving_chat(Chat(engine, DEFAULT_FORMAT, history, recorder), history_on=True, logging_on=True) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        client.responses.create(model="scripted", input="not this", store=False)
        assert history.list() == []
        first = client.responses.create(model="scripted", input="one", store=True, metadata={"case": "7"})
        client.responses.create(model="scripted", input="two", store=True, previous_response_id=first.id)
        client.responses.create(model="scripted", input="2", store=True, previous_response_id=first.id)
    (summary,) = history.list()
    stored = history.read(summary.id)
    assert stored
    assert [message.content for message in stored.conversation().messages] == ["one", "An answer.", "2", "An answer."]
    assert summary.turns == 6, "the second answer to the first response is another branch"
    assert len(recorder.turns) == 3


def test_where_there_is_a_history_an_answer_can_be_continued_after_a_restart() -> None:
    engine, history, recorder = ScriptedEngine("An answer."), MemoryHistory(), ScriptedRecorder()
    with (
        serving_chat(Chat(engine, DEFAULT_FORMAT, history, recorder), history_on=True, logging_on=True) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        first = client.responses.create(model="scripted", input="one")
        forgotten = client.responses.create(model="scripted", input="not this", store=False)
    with (
        serving_chat(Chat(engine, DEFAULT_FORMAT, history, recorder), history_on=True, logging_on=True) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        second = client.responses.create(model="scripted", input="two", previous_response_id=first.id)
        with pytest.raises(openai.BadRequestError, match="sent with store=false or another token, or is erased"):
            client.responses.create(model="scripted", input="two", previous_response_id=forgotten.id)
    (summary,) = history.list()
    stored = history.read(summary.id)
    assert stored
    assert [message.content for message in stored.conversation().messages] == ["one", "An answer.", "two", "An answer."]
    assert [each.to_dict()["store"] for each in (first, second, forgotten)] == [True, True, False]
    assert recorder.turns == [], "the client did not ask for the log"


def test_an_answer_is_given_and_remembered_where_the_history_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise HistoryUnavailable("the disk is full")

    engine, history = ScriptedEngine("An answer."), MemoryHistory()
    monkeypatch.setattr(history, "save", refuse)
    monkeypatch.setattr(history, "finish", refuse)
    with (
        serving_chat(Chat(engine, DEFAULT_FORMAT, history), history_on=True) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        first = client.responses.create(model="scripted", input="one")
        assert (first.output_text, first.to_dict()["store"]) == ("An answer.", False)
        assert client.responses.create(model="scripted", input="two", previous_response_id=first.id).output_text == "An answer."
        with pytest.raises(openai.InternalServerError, match="the disk is full. Send it again, or with store=false"):
            client.responses.create(model="scripted", input="one", store=True)


def test_an_empty_answer_is_an_empty_answer(client: openai.OpenAI, scripted: Served) -> None:
    scripted.engine.answer = ""
    assert client.responses.create(model="scripted", input="hi").output_text == ""
    *_, last = client.responses.create(model="scripted", input="hi", stream=True)
    assert last.type == "response.completed"
    assert last.response.output_text == ""
    chat = client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "hi"}])
    assert (chat.choices[0].message.content, chat.choices[0].finish_reason) == ("", "stop")


def test_an_error_in_mid_stream_is_raised_by_the_client(client: openai.OpenAI, scripted: Served) -> None:
    scripted.engine.fails_after, scripted.engine.delay = 2, 0.02
    kinds: list[str] = []
    stream = client.responses.create(model="scripted", input="hi", stream=True)
    with pytest.raises(openai.APIError, match="the script says"):
        kinds.extend(event.type for event in stream)
    assert kinds[-1] == "response.failed"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools.0"),
        ({"tools": [{"type": "function", "name": "f"}]}, "tools"),
        ({"tools": [{"type": "function", "name": "f"}], "tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format.type"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"truncation": "auto"}, "truncation"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 100_000}, "input"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": 5}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input.0.role"),
        ({"input": [{"role": "user"}]}, "input.0"),
        ({"input": [{"type": "function_call_output", "call_id": "1"}]}, "input.0"),
        ({"input": [{"type": "computer_call_output", "call_id": "1", "output": "x"}]}, "input.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}]}, "input.0.content.0"),
        ({"input": [{"role": "assistant", "content": "x"}]}, "input"),
        ({"input": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}, "input.1.role"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}, {"role": "user", "content": "b"}]}, "input.0.id"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_served_is_refused_by_name(scripted: Served, change: dict[str, Any], param: str) -> None:
    answer = httpx.post(scripted.url + ROUTE, json={"model": "scripted", "input": "hi"} | change, timeout=60)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert scripted.engine.streams == []


def test_what_sdks_send_by_default_is_accepted(scripted: Served) -> None:
    defaults = {
        "tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "include": ["reasoning.encrypted_content"],
        "text": {"format": {"type": "text"}}, "truncation": "disabled", "service_tier": "auto", "instructions": None,
        "previous_response_id": None, "store": None, "stream": None, "temperature": None, "max_output_tokens": None,
        "metadata": None, "user": None, "reasoning": None, "prompt_cache_key": "x",
    }  # fmt: skip
    answer = httpx.post(scripted.url + ROUTE, json={"model": "scripted", "input": "hi"} | defaults, timeout=60)
    assert answer.status_code == 200, answer.text
    assert "x-ignored-fields" not in answer.headers
