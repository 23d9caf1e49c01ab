"""Everything that can go wrong with a server, before the first token and after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from qlora_chat.chat import AnswerOptions, Chat
from qlora_chat.engines import EngineError
from qlora_chat.engines.remote.engine import RemoteEngine
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.messages import Conversation
from qlora_chat.prompt import DEFAULT_FORMAT
from tests.engines.remote.requests import ANSWER, GREEDY, PROMPT, QUICK, STOPS, TEXT, text_of
from tests.fakes import RESET, Reply, ScriptedServer, Status, sse


def fail_first(reply: Reply, *servers: ScriptedServer) -> None:
    """The server that is requested first replies so; afterwards all are healthy."""
    failures = [reply]
    for server in servers:
        server.reply = lambda request, says=server.says: (failures.pop() if failures else says)(request)


BEFORE: dict[str, list[Any]] = {
    "reset at once": [RESET],
    "reset after the headers": [b": hello\n\n", RESET],
    "503": [Status(503, body="overloaded")],
    "429": [Status(429, {"retry-after": "30"})],
    "500": [Status(500, body='{"error": {"message": "worker died"}}')],
    "hangs": [30.0],
    "hangs after the headers": [b": hello\n\n", 30.0],
    "no stream": [Status(200, body='{"choices": []}')],
    "redirect": [Status(307, {"location": "http://127.0.0.1:1/v1/completions"})],
    "half a line": [b'data: {"choices": [{"te'],
    "ends without a word": [b"\n\n"],
    "no JSON": [b"data: <html>\n\n"],
    "not UTF-8": [b'data: {"choices": [{"text": "\xff\xfe"}]}\n\n'],
    "choices of another kind": [b'data: {"choices": "none"}\n\n'],
    "text of another kind": [sse(text=7)],
    "ids of another kind": [sse(text="a", token_ids=["x"])],
    "an error in the stream": [b'data: {"error": {"message": "engine died"}}\n\n'],
    "aborted": [sse(text="", finish_reason="abort")],
    "an error without end": [Status(500, body="x" * 10_000_000)],
    "a line without end": [b"data: " + b"x" * 2_000_000],
    "comments without end": [b": hello\n" * 20_000],
    "events without text": [sse(text="") * 20_000],
    "more text than tokens": [sse(text="x" * 500_000)] * 8,
}


@pytest.mark.parametrize("steps", BEFORE.values(), ids=BEFORE)
def test_before_the_first_token_another_server_takes_over(
    steps: list[Any], server: ScriptedServer, second: ScriptedServer, open_to: Callable[..., RemoteEngine]
) -> None:
    hangs = 30.0 in steps
    engine = open_to(server, second, timeouts=replace(QUICK, first=1.0, following=1.0) if hangs else QUICK)
    fail_first(lambda _: iter(steps), server, second)
    assert text_of(engine.stream(PROMPT, GREEDY, STOPS)) == TEXT
    assert len(server.requests) + len(second.requests) == 2
    server.reply = second.reply = lambda _: iter(steps)
    with pytest.raises(EngineError) as raised:
        list(engine.stream(PROMPT, GREEDY, STOPS))
    assert server.url in str(raised.value)
    assert second.url in str(raised.value)


def test_another_server_continues_an_answer_where_it_broke_off(
    server: ScriptedServer, second: ScriptedServer, open_to: Callable[..., RemoteEngine]
) -> None:
    engine = open_to(server, second)
    fail_first(lambda request: iter([*server.tokens(request, most=6), 0.2, RESET]), server, second)
    assert text_of(engine.stream(PROMPT, GREEDY, STOPS)) == TEXT
    prompts = sorted((each.requests[0]["prompt"] for each in (server, second)), key=len)
    assert prompts == [list(PROMPT.ids), [*PROMPT.ids, *(each for each, _ in ANSWER[:6])]]


def test_without_another_server_the_text_so_far_remains(server: ScriptedServer, open_to: Callable[..., RemoteEngine]) -> None:
    engine = open_to(server)
    server.reply = lambda request: iter([*server.tokens(request, most=6), 0.2, RESET])
    turn = Chat(engine, DEFAULT_FORMAT, MemoryHistory()).reply(Conversation(), "Hi", AnswerOptions(GREEDY))
    with pytest.raises(EngineError, match="broke off after 6 tokens"):
        list(turn)
    assert turn.answer == "".join(text for _, text in ANSWER[:6]).strip()


def test_a_busy_server_is_waited_for(server: ScriptedServer, open_to: Callable[..., RemoteEngine]) -> None:
    engine, busy = open_to(server), [2]

    def reply(request: dict[str, Any]) -> Iterator[Any]:
        busy[0] -= 1
        return iter([Status(429, {"retry-after": "0.1"})]) if busy[0] >= 0 else server.says(request)

    server.reply = reply
    assert text_of(engine.stream(PROMPT, GREEDY, STOPS)) == TEXT
    assert len(server.requests) == 3


def test_a_replaced_server_is_probed_again(server: ScriptedServer, open_to: Callable[..., RemoteEngine]) -> None:
    engine = open_to(server)
    server.text_only, server.gives_ids = True, False
    with pytest.raises(EngineError, match="must be a string"):
        list(engine.stream(PROMPT, GREEDY, STOPS))
    assert text_of(engine.stream(PROMPT, GREEDY, STOPS)) == TEXT


def test_the_key_is_sent_and_a_missing_one_is_explained(server: ScriptedServer, open_to: Callable[..., RemoteEngine]) -> None:
    engine = open_to(server, QLORA_CHAT_ENGINE_KEY="open sesame")
    list(engine.stream(PROMPT, GREEDY, STOPS))
    assert server.headers[-1]["authorization"] == "Bearer open sesame"
    server.reply = lambda _: iter([Status(401)])
    with pytest.raises(EngineError, match="QLORA_CHAT_ENGINE_KEY"):
        list(engine.stream(PROMPT, GREEDY, STOPS))
