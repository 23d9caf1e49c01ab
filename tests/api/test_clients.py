"""The clients that people have: OpenAI's own, LangChain's, and the calls that Open WebUI makes. The demo answers for real."""

from __future__ import annotations

import json
import warnings
from typing import Any

import httpx
import openai
import pytest

from qlora_chat.engines.local import LocalEngine

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."


def test_a_chat_is_answered_with_counts(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": QUESTION}], temperature=0)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens > 5


def test_a_stream_brings_the_same_in_pieces_and_ends_with_its_counts(client: openai.OpenAI, model: str) -> None:
    chunks = list(
        client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": QUESTION}],
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
    assert sum(bool(chunk.choices and chunk.choices[0].delta.content) for chunk in chunks) > 3, "a piece a token"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens > 5


def test_several_turns_and_a_system_text_reach_the_model(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model,
        messages=[
            {"role": "system", "content": "Answer briefly."},
            {"role": "user", "content": "My name is Ada."},
            {"role": "assistant", "content": "Nice to meet you, Ada."},
            {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
        ],
        temperature=0,
    )
    assert "Paris" in (answer.choices[0].message.content or "")


def test_n_answers_differ_and_a_seed_brings_them_again(client: openai.OpenAI, model: str) -> None:
    def ask() -> list[str | None]:
        answer = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "Tell me a story."}], n=3, seed=7, temperature=1.2,
            max_tokens=12, extra_body={"top_k": 100, "repetition_penalty": 1.1},
        )  # fmt: skip
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert {choice.finish_reason for choice in answer.choices} == {"length"}
        return [choice.message.content for choice in answer.choices]

    first = ask()
    assert len(set(first)) == 3
    assert ask() == first


def test_a_stop_text_ends_the_answer_and_is_not_shown(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": QUESTION}], temperature=0, stop=[" France", "zzz"]
    )
    assert answer.choices[0].message.content == "The capital of"
    assert answer.choices[0].finish_reason == "stop"


def test_log_probabilities_are_the_models_own(client: openai.OpenAI, model: str, shared_engine: LocalEngine) -> None:
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": QUESTION}], temperature=0, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs
    assert logprobs.content
    assert "".join(each.token for each in logprobs.content).strip() == ANSWER
    for each in logprobs.content:
        best = each.top_logprobs[0]
        assert (best.token, best.logprob) == (each.token, each.logprob), "greedy takes the likeliest"
        assert 0 >= best.logprob >= each.top_logprobs[1].logprob >= each.top_logprobs[2].logprob
        assert bytes(each.bytes or ()).decode() == each.token


def test_log_probabilities_of_a_stopped_answer_end_where_its_text_does(client: openai.OpenAI, model: str) -> None:
    stream = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": QUESTION}], temperature=0, logprobs=True, stop=" is", stream=True
    )
    entries = [
        entry.token
        for chunk in stream
        for choice in chunk.choices
        if choice.logprobs
        for entry in choice.logprobs.content or []
    ]
    assert "".join(entries).strip() == "The capital of France"


def test_a_text_and_its_ids_are_completed_alike(client: openai.OpenAI, model: str, shared_engine: LocalEngine) -> None:
    text = f"### Human: {QUESTION}### Assistant:"
    ids = [1, *shared_engine.tokenizer.encode(text)]
    several = client.completions.create(model=model, prompt=[text, text], max_tokens=9, temperature=0, stop="###", logprobs=2)
    by_ids = client.completions.create(model=model, prompt=ids, max_tokens=9, temperature=0, stop="###")
    assert several.choices[0].text == several.choices[1].text == by_ids.choices[0].text == f" {ANSWER}"
    assert several.choices[0].logprobs
    assert "".join(several.choices[0].logprobs.tokens or []) == f" {ANSWER}"
    assert several.usage
    assert by_ids.usage
    assert several.usage.prompt_tokens == 2 * by_ids.usage.prompt_tokens == 2 * len(ids)
    streamed = client.completions.create(model=model, prompt=ids, max_tokens=9, temperature=0, stop="###", stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == f" {ANSWER}"


def test_problems_arrive_as_the_clients_own_exceptions(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-5", messages=[{"role": "user", "content": "hi"}])
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "word " * 3000}])
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as much:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}], max_tokens=100_000)
    assert much.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as hot:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}], temperature=3)
    assert hot.value.param == "temperature"


async def _stream_with_async_client(url: str, model: str) -> str:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        stream = await client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": QUESTION}], temperature=0, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


def test_the_async_client_streams(demo_url: str, model: str) -> None:
    import asyncio

    assert asyncio.run(_stream_with_async_client(demo_url, model)) == ANSWER


# --- LangChain -------------------------------------------------------------------------------------------------------


def test_langchain_invokes_streams_and_counts(demo_url: str, model: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LangChain's own, at import
        from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
        from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(model=model, base_url=f"{demo_url}/v1", api_key="none", temperature=0, stream_usage=True)  # type: ignore[arg-type]
    answer = chat.invoke([SystemMessage("Answer briefly."), HumanMessage(QUESTION)])
    assert "Paris" in answer.text
    assert isinstance(answer, AIMessage)
    assert answer.usage_metadata
    assert answer.usage_metadata["output_tokens"] > 3
    pieces = list(chat.stream([HumanMessage(QUESTION)]))
    assert "".join(piece.text for piece in pieces) == ANSWER
    assert len([piece for piece in pieces if piece.text]) > 3
    chained = chat.invoke([HumanMessage("hi"), answer, HumanMessage("Well."), HumanMessage(QUESTION)])
    assert chained.text


# --- Open WebUI ------------------------------------------------------------------------------------------------------


def test_open_webui_lists_models_and_streams_with_its_extra_fields(demo_url: str) -> None:
    headers = {"authorization": "Bearer none", "x-openwebui-user-name": "Ada", "x-openwebui-user-id": "1"}
    listed = httpx.get(f"{demo_url}/v1/models", headers=headers, timeout=60).json()
    assert listed["object"] == "list"
    body: dict[str, Any] = {
        "model": listed["data"][0]["id"],
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
        "params": {}, "features": {"web_search": False}, "variables": {"{{USER_NAME}}": "Ada"}, "session_id": "s",
        "chat_id": "c", "id": "m", "background_tasks": {"title_generation": True}, "tool_servers": [], "filter_ids": [],
        "metadata": {"features": {"web_search": False}},
    }  # fmt: skip
    with httpx.stream("POST", f"{demo_url}/v1/chat/completions", json=body, headers=headers, timeout=60) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert {"chat_id", "metadata"} <= set(answer.headers["x-ignored-fields"].split(", ")), "what is not used is said"
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"]) == ANSWER
    assert chunks[-1]["usage"]["completion_tokens"] > 3


def test_langchains_completions_send_null_for_what_is_not_set(demo_url: str, model: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from langchain_openai import OpenAI

    completion = OpenAI(model=model, base_url=f"{demo_url}/v1", api_key="none", max_retries=0)  # type: ignore[arg-type, call-arg]
    assert isinstance(completion.invoke("The capital of France is"), str)


# --- responses -------------------------------------------------------------------------------------------------------


def test_a_response_is_answered_streamed_and_continued(client: openai.OpenAI, model: str) -> None:
    first = client.responses.create(model=model, input=QUESTION, temperature=0)
    assert first.output_text == ANSWER
    with client.responses.stream(model=model, input=QUESTION, temperature=0) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert stream.get_final_response().output_text == "".join(deltas) == ANSWER
    assert len(deltas) > 3, "a piece a token"
    second = client.responses.create(model=model, input="Thank you.", previous_response_id=first.id, temperature=0)
    assert first.usage
    assert second.usage
    assert second.usage.input_tokens > first.usage.input_tokens + first.usage.output_tokens
    cut = client.responses.create(model=model, input=QUESTION, max_output_tokens=2, temperature=0)
    assert cut.status == "incomplete"
    assert cut.incomplete_details
    assert cut.incomplete_details.reason == "max_output_tokens"
