"""Several servers: the least busy one, the one that has the conversation in its cache, the one that is down."""

from __future__ import annotations

from collections.abc import Callable

from qlora_chat.engines.remote.engine import RemoteEngine, open_remote
from qlora_chat.engines.remote.server import Timeouts
from qlora_chat.settings import engine_settings
from tests.engines.remote.requests import DEMO, GREEDY, PROMPT, QUICK, STOPS, TEXT, text_of, until
from tests.fakes import RESET, ScriptedServer


def test_the_least_busy_server_is_chosen(
    server: ScriptedServer, second: ScriptedServer, open_to: Callable[..., RemoteEngine]
) -> None:
    engine = open_to(server, second)
    server.delay = second.delay = 0.1
    streams = [engine.stream(PROMPT, GREEDY, STOPS) for _ in range(4)]
    until(lambda: server.running == 2 and second.running == 2)
    for stream in streams:
        stream.cancel()


def test_a_conversation_returns_to_the_server_that_cached_it(
    server: ScriptedServer, second: ScriptedServer, open_to: Callable[..., RemoteEngine]
) -> None:
    engine = open_to(server, second)
    for _ in range(4):
        list(engine.stream(PROMPT, GREEDY, STOPS))
        until(lambda: not any(each.running for each in engine.pool.servers))
    assert sorted([len(server.requests), len(second.requests)]) == [0, 4]


def test_a_server_that_is_down_is_avoided_and_used_again_when_it_is_up(
    server: ScriptedServer, second: ScriptedServer, open_to: Callable[..., RemoteEngine]
) -> None:
    engine = open_to(server, second, timeouts=Timeouts(first=60.0, health=0.1))
    server.reply = second.reply = lambda _: iter([30.0])
    stream = engine.stream(PROMPT, GREEDY, STOPS)
    until(lambda: server.requests or second.requests)
    down, other = (server, second) if server.requests else (second, server)
    other.reply, down.well = other.says, False
    assert text_of(stream) == TEXT, "it waited for a first token that would never have come"
    list(engine.stream(PROMPT, GREEDY, STOPS))
    assert len(down.requests) == 1
    down.reply, down.well = down.says, True
    until(lambda: all(each.up for each in engine.pool.servers))
    list(engine.stream(PROMPT, GREEDY, STOPS))
    assert len(down.requests) == 2


def test_a_server_that_comes_up_later_is_used_then(server: ScriptedServer, second: ScriptedServer) -> None:
    port, notices = second.port, []
    second.stop()
    where = engine_settings(f"{server.url},{second.url}")
    engine = open_remote(DEMO, where, notices.append, QUICK)
    assert any("cannot be reached" in line and str(port) in line for line in notices)
    server.reply = lambda _: iter([RESET])
    second.start(port)
    until(lambda: all(each.up for each in engine.pool.servers))
    assert text_of(engine.stream(PROMPT, GREEDY, STOPS)) == TEXT
    engine.close()
