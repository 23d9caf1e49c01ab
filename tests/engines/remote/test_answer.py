"""One answer from a server: its request, its tokens, and settings that change or ends that come in the middle of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qlora_chat.chat import AnswerOptions, Chat
from qlora_chat.engines import EngineError
from qlora_chat.engines.remote.engine import RemoteEngine
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.messages import Conversation
from qlora_chat.prompt import DEFAULT_FORMAT, Prompt
from qlora_chat.settings import Sampling
from tests.engines.remote.requests import ANSWER, GREEDY, PROMPT, STOPS, TEXT, finish_of, text_of, until
from tests.fakes import ScriptedServer, demo_tokens


def test_our_ids_settings_and_stops_go_out_and_tokens_come_back(
    server: ScriptedServer, open_to: Callable[..., RemoteEngine]
) -> None:
    sampling = Sampling(temperature=0.5, top_p=0.8, top_k=7, min_p=0.05, repetition_penalty=1.2, max_new_tokens=100, seed=11)
    pieces = list(open_to(server).stream(PROMPT, sampling, STOPS))
    assert "".join(piece.text for piece in pieces) == TEXT
    assert [piece.token_id for piece in pieces if piece.token_id is not None] == [each for each, _ in ANSWER]
    finish = pieces[-1].finish
    assert finish is not None
    assert (finish.reason, finish.prompt_tokens, finish.completion_tokens) == ("stop", len(PROMPT.ids), len(ANSWER))
    assert finish.ttft_ms is not None
    (request,) = server.requests
    expected = {"prompt": list(PROMPT.ids), "temperature": 0.5, "top_p": 0.8, "top_k": 7, "min_p": 0.05,
                "repetition_penalty": 1.2, "max_tokens": 100, "seed": 11,
                "stop": list(STOPS.texts), "stop_token_ids": [2], "stream": True}  # fmt: skip
    assert {name: request[name] for name in expected} == expected


def test_stops_hold_even_where_the_server_ignores_them(server: ScriptedServer, open_to: Callable[..., RemoteEngine]) -> None:
    server.answer = demo_tokens(" Yes.### Human: and now I speak for you")
    stream = open_to(server).stream(PROMPT, GREEDY, STOPS)
    pieces = list(stream)
    assert "".join(piece.text for piece in pieces) == " Yes."
    assert pieces[-1].finish is not None
    assert pieces[-1].finish.reason == "stop"
    server.answer = [*demo_tokens(" Yes."), (2, "</s>"), *demo_tokens(" And more")]
    assert text_of(open_to(server).stream(PROMPT, GREEDY, STOPS)) == " Yes."


def test_log_probabilities_come_with_the_tokens_on_request(
    server: ScriptedServer, open_to: Callable[..., RemoteEngine]
) -> None:
    pieces = list(open_to(server).stream(PROMPT, GREEDY.changed(logprobs=2), STOPS))
    tokens = [piece for piece in pieces if piece.token_id is not None]
    first, _ = ANSWER[0]
    assert (tokens[0].token_id, tokens[0].logprob) == (first, -0.25)
    assert tokens[0].top_logprobs == ((first, -0.25), (first + 1, -1.5)), "the two most probable, best first"
    assert all(piece.logprob == -0.25 for piece in tokens)
    plain = list(open_to(server).stream(PROMPT, GREEDY, STOPS))
    assert all(piece.logprob is None for piece in plain)


def test_a_server_without_log_probabilities_answers_without_them(
    server: ScriptedServer, open_to: Callable[..., RemoteEngine]
) -> None:
    server.refused_fields = frozenset({"logprobs"})
    pieces = list(open_to(server).stream(PROMPT, GREEDY.changed(logprobs=2), STOPS))
    assert "".join(piece.text for piece in pieces) == TEXT
    assert all(piece.logprob is None for piece in pieces)


def test_ids_stay_the_same_through_a_conversation(server: ScriptedServer, open_to: Callable[..., RemoteEngine]) -> None:
    chat = Chat(open_to(server), DEFAULT_FORMAT, MemoryHistory())
    first = chat.reply(Conversation(), "Where is Paris?", AnswerOptions(GREEDY))
    list(first)
    assert first.answer == TEXT.strip()
    list(chat.reply(first.conversation, "Thanks!", AnswerOptions(GREEDY)))
    first_prompt, second_prompt = (request["prompt"] for request in server.requests)
    assert second_prompt[: len(first_prompt) + len(ANSWER)] == [*first_prompt, *(each for each, _ in ANSWER)], (
        "the answer's own ids, not a second tokenization"
    )


def test_the_length_is_the_smaller_of_the_setting_and_the_room_in_the_window(
    server: ScriptedServer, open_to: Callable[..., RemoteEngine]
) -> None:
    engine = open_to(server)
    assert finish_of(engine.stream(PROMPT, GREEDY.changed(max_new_tokens=3), STOPS)).completion_tokens == 3
    list(engine.stream(PROMPT, GREEDY.changed(max_new_tokens=5000), STOPS))
    assert server.requests[-1]["max_tokens"] == engine.info.window - len(PROMPT.ids)


def test_the_window_is_the_servers_where_that_is_smaller(server: ScriptedServer, open_to: Callable[..., RemoteEngine]) -> None:
    server.models = [{"id": "scripted", "max_model_len": 100}]
    assert open_to(server).info.window == 100


@pytest.mark.parametrize(
    ("ids", "adapter", "message"),
    [((), None, "empty"), ((1, 8192), None, "8191"), ((1,) * 512, None, "window"), ((1,), "x", "'x' is not loaded")],
)
def test_an_invalid_prompt_is_refused_at_the_call(
    ids: tuple[int, ...], adapter: str | None, message: str, server: ScriptedServer, open_to: Callable[..., RemoteEngine]
) -> None:
    with pytest.raises(ValueError, match=message):
        open_to(server).stream(Prompt("", ids), GREEDY, STOPS, adapter)


def test_settings_changed_during_an_answer_continue_from_the_ids_so_far(
    server: ScriptedServer, open_to: Callable[..., RemoteEngine]
) -> None:
    engine, server.delay = open_to(server), 0.06  # slow, or a busy machine has sent all of it before it is cut off
    stream = engine.stream(PROMPT, GREEDY.changed(seed=4), STOPS)
    pieces = iter(stream)
    shown = [next(pieces) for _ in range(5)]
    for temperature in (0.5, 0.6, 0.7):  # dragged, not set
        stream.update(GREEDY.changed(temperature=temperature))
    shown += pieces
    assert "".join(piece.text for piece in shown) == TEXT, "nothing twice, nothing lost"
    first, *_, last = server.requests
    done = len(last["prompt"]) - len(first["prompt"])
    assert 5 <= done < len(ANSWER)
    assert last["prompt"] == [*PROMPT.ids, *(each for each, _ in ANSWER[:done])]
    assert (last["temperature"], last["max_tokens"], last["seed"]) == (0.7, 200 - done, 4 + done)
    assert len(server.requests) == 2, "one new request for the whole drag"
    assert shown[-1].finish is not None
    assert shown[-1].finish.changes == ((done, GREEDY.changed(temperature=0.7)),)
    until(lambda: server.cut_off == 1)


def test_cancelling_closes_the_request(server: ScriptedServer, open_to: Callable[..., RemoteEngine]) -> None:
    engine, server.delay = open_to(server), 0.05
    stream = engine.stream(PROMPT, GREEDY, STOPS)
    pieces = iter(stream)
    next(pieces)
    stream.cancel()
    stream.cancel()
    assert list(pieces)[-1].finish.reason == "cancelled"  # type: ignore[union-attr]
    until(lambda: server.running == 0 and server.cut_off == 1)


def test_an_answer_without_a_first_token_can_be_cancelled(server: ScriptedServer, open_to: Callable[..., RemoteEngine]) -> None:
    engine, server.delay = open_to(server), 0.8
    stream = engine.stream(PROMPT, GREEDY, STOPS)
    until(lambda: server.running)
    stream.cancel()
    assert finish_of(stream).reason == "cancelled"


def test_closing_ends_running_answers(server: ScriptedServer, open_to: Callable[..., RemoteEngine]) -> None:
    engine, server.delay = open_to(server), 0.2
    stream = engine.stream(PROMPT, GREEDY, STOPS)
    until(lambda: server.running)
    engine.close()
    assert finish_of(stream).reason == "cancelled"
    with pytest.raises(EngineError, match="closed"):
        engine.stream(PROMPT, GREEDY, STOPS)
