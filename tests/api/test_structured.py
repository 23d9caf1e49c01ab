"""`response_format`, `text.format` and function calls, with OpenAI's client: the real demo answers with JSON that matches."""

from __future__ import annotations

import json
from typing import Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel

from qlora_chat.chat import Chat
from qlora_chat.engines.local import LocalEngine
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.prompt import DEFAULT_FORMAT
from tests.fakes import ScriptedRecorder
from tests.web.serving import Served, serving_chat

ASKED: Any = [{"role": "user", "content": "How are you?"}]
CHAT = "/v1/chat/completions"


class Mood(BaseModel):
    """A mood."""

    mood: Literal["happy", "sad"]
    level: Literal[1, 2, 3]


TOOL: Any = {"type": "function", "function": {"name": "set_mood", "parameters": Mood.model_json_schema()}}
NAMED: Any = {"type": "function", "function": {"name": "set_mood"}}


def test_the_answer_is_an_instance_of_the_class_that_was_asked_for(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.parse(model=model, messages=ASKED, response_format=Mood, temperature=1.5, n=3)
    assert all(isinstance(choice.message.parsed, Mood) for choice in answer.choices)
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}
    response = client.responses.parse(model=model, input="How are you?", text_format=Mood, temperature=1.5)
    assert isinstance(response.output_parsed, Mood)
    assert response.text
    assert response.text.format
    assert response.text.format.type == "json_schema"


def test_a_json_object_is_one(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=ASKED, response_format={"type": "json_object"}, temperature=0, max_tokens=40
    )
    content = answer.choices[0].message.content or ""
    assert content.startswith("{")
    assert answer.choices[0].finish_reason == "length" or isinstance(json.loads(content), dict)


@pytest.mark.parametrize(("choice", "reason"), [(NAMED, "stop"), ("required", "tool_calls")])
def test_a_function_that_has_to_be_called_is_called(client: openai.OpenAI, model: str, choice: Any, reason: str) -> None:
    asked: Any = {"model": model, "messages": ASKED, "tools": [TOOL], "tool_choice": choice, "seed": 3, "temperature": 1.5}
    (whole,) = client.chat.completions.create(**asked).choices
    assert whole.message.content is None
    assert whole.message.tool_calls
    (call,) = whole.message.tool_calls
    assert call.type == "function"
    assert call.function.name == "set_mood"
    Mood.model_validate_json(call.function.arguments)
    assert whole.finish_reason == reason

    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True)]
    calls = [each for chunk in chunks for each in chunk.delta.tool_calls or ()]
    assert (calls[0].id or "").startswith("call_")
    assert calls[0].function
    assert calls[0].function.name == "set_mood"
    assert "".join(each.function.arguments or "" for each in calls if each.function) == call.function.arguments
    assert len(calls) > 3, "a piece a token"
    assert chunks[-1].finish_reason == reason


@pytest.mark.parametrize("choice", [{"type": "function", "name": "set_mood"}, "required"])
def test_a_response_is_a_function_call(client: openai.OpenAI, model: str, choice: Any) -> None:
    tool: Any = {"type": "function", **TOOL["function"]}
    asked: Any = {"model": model, "tools": [tool], "tool_choice": choice, "seed": 3, "temperature": 1.5}
    asked |= {"extra_body": {"seed": asked.pop("seed")}}
    whole = client.responses.create(**asked, input="How are you?")
    (call,) = whole.output
    assert call.type == "function_call"
    assert (call.name, call.status) == ("set_mood", "completed")
    Mood.model_validate_json(call.arguments)
    with client.responses.stream(**asked, input="How are you?") as stream:
        kinds = [event.type for event in stream]
        (streamed,) = stream.get_final_response().output
    assert streamed.type == "function_call"
    assert streamed.arguments == call.arguments
    assert kinds.count("response.function_call_arguments.delta") > 3, "a piece a token"
    assert kinds[-3:] == ["response.function_call_arguments.done", "response.output_item.done", "response.completed"]

    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
    again = client.responses.create(model=model, previous_response_id=whole.id, input=[output])
    assert again.output_text
    whole_input: Any = [{"role": "user", "content": "How are you?"}, call.model_dump(), output]
    assert client.responses.create(model=model, input=whole_input).output_text


def test_a_call_that_is_cut_off_says_so(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=ASKED, tools=[TOOL], tool_choice=NAMED, max_tokens=3)
    assert answer.choices[0].finish_reason == "length"


def test_a_text_is_completed_with_json(client: openai.OpenAI, model: str) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "mood", "schema": Mood.model_json_schema()}}
    answer = client.completions.create(model=model, prompt="Mood: ", max_tokens=40, extra_body={"response_format": wanted})
    Mood.model_validate_json(answer.choices[0].text)


def test_a_schema_that_cannot_be_enforced_is_refused_by_its_field(demo_url: str, model: str) -> None:
    unsupported = {"not": {"type": "object"}}
    for change, param in (
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": unsupported, "strict": True}}},
            "response_format",
        ),
        (
            {"tools": [{**TOOL, "function": {"name": "f", "parameters": {"type": "wrong"}}}], "tool_choice": "required"},
            "tools.0",
        ),
    ):
        answer = httpx.post(demo_url + CHAT, json={"model": model, "messages": ASKED, **change}, timeout=60)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, "unsupported_schema")
        assert error["param"].startswith(param)


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"tool_choice": "auto", "tools": [TOOL]}, "tool_choice", '"required" with a single tool; "none" answers in text'),
        ({"tools": [TOOL]}, "tools", "this server calls a function only if it has to"),
        ({"tools": [TOOL, TOOL], "tool_choice": "required"}, "tool_choice", "required with 2 tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice", "names g"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "must follow the assistant's"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages.0", "each with a function and its arguments"),
    ],
)
def test_a_call_that_cannot_be_made_is_refused_with_what_can(
    scripted: Served, change: dict[str, Any], param: str, words: str
) -> None:
    answer = httpx.post(scripted.url + CHAT, json={"model": "scripted", "messages": ASKED} | change, timeout=60)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert words in error["message"]
    assert scripted.engine.streams == []


def test_the_model_is_told_of_the_schema_and_of_earlier_calls(scripted: Served) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "set_mood", "arguments": '{"mood": "sad"}'}}
    messages = [
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "level is missing"},
    ]
    body = {"model": "scripted", "messages": messages, "tools": [TOOL], "tool_choice": NAMED}
    httpx.post(scripted.url + CHAT, json=body, timeout=60).raise_for_status()
    prompt = scripted.engine.streams[0].prompt.text
    *earlier, told = prompt.split("### Human: ")
    assert '### Assistant: {"mood": "sad"}' in earlier[-1]
    assert told.startswith("level is missing\n\nCall the function set_mood")
    assert '"enum": ["happy", "sad"]' in told
    assert scripted.engine.streams[0].stops.texts == (), "a stop text of the format would cut JSON that holds it"


def test_no_tool_is_called_if_none_is_to_be(scripted: Served) -> None:
    body = {"model": "scripted", "messages": ASKED, "tools": [TOOL], "tool_choice": "none"}
    answer = httpx.post(scripted.url + CHAT, json=body, timeout=60).json()
    assert answer["choices"][0]["message"]["content"] == "This is a scripted answer."
    assert "set_mood" not in scripted.engine.streams[0].prompt.text


def test_a_stored_call_is_recorded_as_it_was_made(shared_engine: LocalEngine) -> None:
    history, recorder = MemoryHistory(), ScriptedRecorder()
    with serving_chat(Chat(shared_engine, DEFAULT_FORMAT, history, recorder), logging_on=True, history_on=True) as url:
        model = httpx.get(f"{url}/v1/models", timeout=60).json()["data"][0]["id"]
        body = {"model": model, "messages": ASKED, "tools": [TOOL], "tool_choice": NAMED, "store": True}
        answer = httpx.post(url + CHAT, json=body, timeout=60).json()
    (record,) = recorder.turns
    question, stored = record.conversation.messages
    assert question.content == "How are you?", "what the client sent, without what the model was told of the schema"
    assert stored.content == answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]
    assert "set_mood" in record.prompt_text
    assert record.schema
    assert json.loads(record.schema.text) == Mood.model_json_schema()
