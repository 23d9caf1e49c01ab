"""The remote engine against servers that follow a script: what goes out, what comes back, and everything that can go wrong."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from qlora_chat.chat import Chat
from qlora_chat.engines import EngineError, Finish, Stream, open_engine
from qlora_chat.engines.remote.engine import RemoteEngine, open_remote
from qlora_chat.engines.remote.server import Patience
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.messages import Conversation
from qlora_chat.models.identity import identify
from qlora_chat.prompt import DEFAULT_FORMAT, Prompt, render
from qlora_chat.settings import ModelSettings, Sampling, engine_settings
from qlora_chat.stopping import Stops
from tests.fakes import RESET, Reply, ScriptedServer, Status, demo_tokens, sse

DEMO = ModelSettings(model="demo")
TOKENIZER = identify(DEMO, lambda line: None).tokenizer
TEXT = " Paris is the capital of France, and a good place to sit by the river with a cup of tea."
STOPS = Stops(frozenset({2}), DEFAULT_FORMAT.stop_texts)
QUICK = Patience(connect=2.0, first=1.0, following=1.0, busy=3.0, health=0.2)
GREEDY = Sampling(temperature=0.0, max_new_tokens=200)


ANSWER = demo_tokens(TEXT)
PROMPT = render(Conversation(), DEFAULT_FORMAT, TOKENIZER)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer(ANSWER)
    yield server
    server.stop()


@pytest.fixture
def second() -> Iterator[ScriptedServer]:
    server = ScriptedServer(ANSWER)
    yield server
    server.stop()


@pytest.fixture
def open_to() -> Iterator[Callable[..., RemoteEngine]]:
    """Opens remote engines, and closes them when the test is over."""
    engines: list[RemoteEngine] = []

    def opened(*servers: ScriptedServer, model: str | None = None, patience: Patience = QUICK, **environ: str) -> RemoteEngine:
        where = engine_settings(",".join(each.url for each in servers), model, environ)
        engines.append(open_remote(DEMO, where, lambda line: None, patience))
        for each in servers:
            each.requests.clear()
        return engines[-1]

    yield opened
    for engine in engines:
        engine.close()


def text_of(stream: Stream) -> str:
    return "".join(piece.text for piece in stream)


def finish_of(stream: Stream) -> Finish:
    finish = list(stream)[-1].finish
    assert finish is not None
    return finish


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)


# --- what goes out and what comes back ---------------------------------------------------------------------------------


def test_our_ids_settings_and_stops_go_out_and_tokens_come_back(
    server: ScriptedServer, open_to: Callable[..., RemoteEngine]
) -> None:
    sampling = Sampling(temperature=0.5, top_p=0.8, top_k=7, repetition_penalty=1.2, max_new_tokens=100, seed=11)
    pieces = list(open_to(server).stream(PROMPT, sampling, STOPS))
    assert "".join(piece.text for piece in pieces) == TEXT
    assert [piece.token_id for piece in pieces if piece.token_id is not None] == [each for each, _ in ANSWER]
    finish = pieces[-1].finish
    assert finish is not None
    assert (finish.reason, finish.prompt_tokens, finish.completion_tokens) == ("stop", len(PROMPT.ids), len(ANSWER))
    assert finish.ttft_ms is not None
    (request,) = server.requests
    expected = {"prompt": list(PROMPT.ids), "temperature": 0.5, "top_p": 0.8, "top_k": 7, "repetition_penalty": 1.2,
                "max_tokens": 100, "seed": 11, "stop": list(STOPS.texts), "stop_token_ids": [2], "stream": True}  # fmt: skip
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


def test_ids_stay_the_same_through_a_conversation(server: ScriptedServer, open_to: Callable[..., RemoteEngine]) -> None:
    chat = Chat(open_to(server), DEFAULT_FORMAT, MemoryHistory())
    first = chat.reply(Conversation(), "Where is Paris?", GREEDY)
    list(first)
    assert first.answer == TEXT.strip()
    list(chat.reply(first.conversation, "Thanks!", GREEDY))
    asked, again = (request["prompt"] for request in server.requests)
    assert again[: len(asked) + len(ANSWER)] == [*asked, *(each for each, _ in ANSWER)], "no guess at how it was tokenised"


def test_the_length_is_the_smaller_of_what_was_asked_and_what_fits(
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
    ("ids", "adapter", "said"),
    [((), None, "empty"), ((1, 8192), None, "8191"), ((1,) * 512, None, "window"), ((1,), "x", "'x' is not loaded")],
)
def test_a_prompt_it_cannot_take_is_refused_at_the_call(
    ids: tuple[int, ...], adapter: str | None, said: str, server: ScriptedServer, open_to: Callable[..., RemoteEngine]
) -> None:
    with pytest.raises(ValueError, match=said):
        open_to(server).stream(Prompt("", ids), GREEDY, STOPS, adapter)


# --- changed and ended in mid-answer -----------------------------------------------------------------------------------


def test_a_slider_moved_in_mid_answer_goes_on_from_the_ids_so_far(
    server: ScriptedServer, open_to: Callable[..., RemoteEngine]
) -> None:
    engine, server.delay = open_to(server), 0.02
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


def test_an_answer_nobody_has_seen_a_word_of_can_be_cancelled(
    server: ScriptedServer, open_to: Callable[..., RemoteEngine]
) -> None:
    engine, server.delay = open_to(server), 0.8
    stream = engine.stream(PROMPT, GREEDY, STOPS)
    until(lambda: server.running)
    stream.cancel()
    assert finish_of(stream).reason == "cancelled"


def test_closing_ends_what_runs(server: ScriptedServer, open_to: Callable[..., RemoteEngine]) -> None:
    engine, server.delay = open_to(server), 0.2
    stream = engine.stream(PROMPT, GREEDY, STOPS)
    until(lambda: server.running)
    engine.close()
    assert finish_of(stream).reason == "cancelled"
    with pytest.raises(EngineError, match="closed"):
        engine.stream(PROMPT, GREEDY, STOPS)


# --- servers that take less --------------------------------------------------------------------------------------------


def test_what_a_server_refuses_is_left_out_and_said(server: ScriptedServer, open_to: Callable[..., RemoteEngine]) -> None:
    server.refused_fields = frozenset({"top_k", "return_token_ids", "stream_options", "generation_config"})
    server.gives_ids = False
    engine = open_to(server)
    assert text_of(engine.stream(PROMPT, GREEDY, STOPS)) == TEXT
    assert any("has no top-k" in line for line in engine.info.notices)
    assert not any("repetition" in line for line in engine.info.notices)


@pytest.mark.parametrize("counts_bos", [True, False], ids=["server-adds-bos", "server-adds-none"])
def test_a_server_of_text_is_sent_one_bos_and_no_token_that_was_typed(
    counts_bos: bool, server: ScriptedServer, open_to: Callable[..., RemoteEngine]
) -> None:
    server.text_only, server.counts_bos, server.gives_ids = True, counts_bos, False
    chat = Chat(open_to(server), DEFAULT_FORMAT, MemoryHistory())
    turn = chat.reply(Conversation(), "Is </s> the end, or <s>?", GREEDY)
    list(turn)
    assert turn.answer == TEXT.strip()
    assert turn.finish is not None
    assert turn.finish.completion_tokens == len(ANSWER)
    sent = "### Human: Is < /s> the end, or < s>?### Assistant:"
    assert server.requests[0]["prompt"] == (sent if counts_bos else "<s> " + sent), (
        "with the space that the tokenizer would have put there"
    )


def test_a_server_of_text_is_interrupted_between_words_and_loses_no_space(
    server: ScriptedServer, open_to: Callable[..., RemoteEngine]
) -> None:
    server.text_only, server.gives_ids = True, False
    engine, server.delay = open_to(server), 0.02
    stream = engine.stream(PROMPT, GREEDY, STOPS)
    pieces = iter(stream)
    shown = [next(pieces) for _ in range(4)]
    stream.update(GREEDY.changed(temperature=0.4))
    shown += pieces
    assert "".join(piece.text for piece in shown) == TEXT
    assert len(server.requests) == 2


def test_a_server_that_takes_ids_and_gives_none_goes_on_from_its_text(
    server: ScriptedServer, open_to: Callable[..., RemoteEngine]
) -> None:
    server.gives_ids = False
    engine, server.delay = open_to(server), 0.02
    stream = engine.stream(PROMPT, GREEDY, STOPS)
    pieces = iter(stream)
    shown = [next(pieces) for _ in range(4)]
    stream.update(GREEDY.changed(temperature=0.4))
    shown += pieces
    assert "".join(piece.text for piece in shown) == TEXT
    assert server.requests[1]["prompt"][: len(PROMPT.ids)] == list(PROMPT.ids)


# --- failures ------------------------------------------------------------------------------------------------------------


def fail_first(reply: Reply, *servers: ScriptedServer) -> None:
    """Whichever server is asked first replies so; afterwards all are without fault."""
    failures = [reply]
    for server in servers:
        server.reply = lambda request, says=server.says: (failures.pop() if failures else says)(request)


BEFORE: dict[str, list[Any]] = {
    "reset at once": [RESET],
    "reset after the headers": [b": hello\n\n", RESET],
    "503": [Status(503, body="overloaded")],
    "429": [Status(429, {"retry-after": "30"})],
    "500": [Status(500, body='{"error": {"message": "worker died"}}')],
    "hangs": [3.0],
    "hangs after the headers": [b": hello\n\n", 3.0],
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
}


@pytest.mark.parametrize("steps", BEFORE.values(), ids=BEFORE)
def test_before_the_first_token_another_server_takes_over(
    steps: list[Any], server: ScriptedServer, second: ScriptedServer, open_to: Callable[..., RemoteEngine]
) -> None:
    engine = open_to(server, second)
    fail_first(lambda _: iter(steps), server, second)
    assert text_of(engine.stream(PROMPT, GREEDY, STOPS)) == TEXT
    assert len(server.requests) + len(second.requests) == 2
    server.reply = second.reply = lambda _: iter(steps)
    with pytest.raises(EngineError) as raised:
        list(engine.stream(PROMPT, GREEDY, STOPS))
    assert server.url in str(raised.value)
    assert second.url in str(raised.value)


def test_in_mid_answer_another_server_goes_on_where_it_broke_off(
    server: ScriptedServer, second: ScriptedServer, open_to: Callable[..., RemoteEngine]
) -> None:
    engine = open_to(server, second)
    fail_first(lambda request: iter([*server.tokens(request, most=6), 0.2, RESET]), server, second)
    assert text_of(engine.stream(PROMPT, GREEDY, STOPS)) == TEXT
    prompts = sorted((each.requests[0]["prompt"] for each in (server, second)), key=len)
    assert prompts == [list(PROMPT.ids), [*PROMPT.ids, *(each for each, _ in ANSWER[:6])]]


def test_where_there_is_no_other_what_was_written_is_kept(server: ScriptedServer, open_to: Callable[..., RemoteEngine]) -> None:
    engine = open_to(server)
    server.reply = lambda request: iter([*server.tokens(request, most=6), 0.2, RESET])
    turn = Chat(engine, DEFAULT_FORMAT, MemoryHistory()).reply(Conversation(), "Hi", GREEDY)
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


def test_a_server_that_became_another_is_asked_anew_what_it_takes(
    server: ScriptedServer, open_to: Callable[..., RemoteEngine]
) -> None:
    engine = open_to(server)
    server.text_only, server.gives_ids = True, False
    with pytest.raises(EngineError, match="must be a string"):
        list(engine.stream(PROMPT, GREEDY, STOPS))
    assert text_of(engine.stream(PROMPT, GREEDY, STOPS)) == TEXT


def test_a_lost_key_is_explained_and_a_given_one_is_sent(server: ScriptedServer, open_to: Callable[..., RemoteEngine]) -> None:
    engine = open_to(server, QLORA_CHAT_ENGINE_KEY="open sesame")
    list(engine.stream(PROMPT, GREEDY, STOPS))
    assert server.headers[-1]["authorization"] == "Bearer open sesame"
    server.reply = lambda _: iter([Status(401)])
    with pytest.raises(EngineError, match="QLORA_CHAT_ENGINE_KEY"):
        list(engine.stream(PROMPT, GREEDY, STOPS))


# --- several servers -----------------------------------------------------------------------------------------------------


def test_the_least_busy_server_is_chosen(
    server: ScriptedServer, second: ScriptedServer, open_to: Callable[..., RemoteEngine]
) -> None:
    engine = open_to(server, second)
    server.delay = second.delay = 0.1
    streams = [engine.stream(PROMPT, GREEDY, STOPS) for _ in range(4)]
    until(lambda: server.running == 2 and second.running == 2)
    for stream in streams:
        stream.cancel()


def test_a_conversation_keeps_to_the_server_that_knows_it(
    server: ScriptedServer, second: ScriptedServer, open_to: Callable[..., RemoteEngine]
) -> None:
    engine = open_to(server, second)
    for _ in range(4):
        list(engine.stream(PROMPT, GREEDY, STOPS))
        until(lambda: not any(each.running for each in engine.pool.servers))
    assert sorted([len(server.requests), len(second.requests)]) == [0, 4]


def test_a_server_that_fell_ill_is_left_and_used_again_when_it_is_well(
    server: ScriptedServer, second: ScriptedServer, open_to: Callable[..., RemoteEngine]
) -> None:
    engine = open_to(server, second, patience=Patience(first=60.0, health=0.1))
    server.reply = second.reply = lambda _: iter([30.0])
    stream = engine.stream(PROMPT, GREEDY, STOPS)
    until(lambda: server.requests or second.requests)
    ill, other = (server, second) if server.requests else (second, server)
    other.reply, ill.well = other.says, False
    assert text_of(stream) == TEXT, "it waited for a first token that would never have come"
    list(engine.stream(PROMPT, GREEDY, STOPS))
    assert len(ill.requests) == 1
    ill.reply, ill.well = ill.says, True
    until(lambda: all(each.up for each in engine.pool.servers))
    list(engine.stream(PROMPT, GREEDY, STOPS))
    assert len(ill.requests) == 2


def test_one_that_is_not_there_yet_is_used_when_it_comes(server: ScriptedServer, second: ScriptedServer) -> None:
    port, said = second.port, []
    second.stop()
    where = engine_settings(f"{server.url},{second.url}")
    engine = open_remote(DEMO, where, said.append, QUICK)
    assert any("cannot be reached" in line and str(port) in line for line in said)
    server.reply = lambda _: iter([RESET])
    second.start(port)
    until(lambda: all(each.up for each in engine.pool.servers))
    assert text_of(engine.stream(PROMPT, GREEDY, STOPS)) == TEXT
    engine.close()


# --- opening -------------------------------------------------------------------------------------------------------------


def test_an_adapter_is_chosen_by_the_name_that_the_servers_list(
    server: ScriptedServer, open_to: Callable[..., RemoteEngine]
) -> None:
    server.models = [{"id": "base"}, {"id": "chat", "parent": "base"}]
    engine = open_to(server, model="base")
    assert engine.info.adapters == ("chat",)
    list(engine.stream(PROMPT, GREEDY, STOPS, "chat"))
    server.models.append({"id": "loaded later", "parent": "base"})
    list(engine.stream(PROMPT, GREEDY, STOPS, "loaded later"))
    list(engine.stream(PROMPT, GREEDY, STOPS))
    assert [request["model"] for request in server.requests] == ["chat", "loaded later", "base"]
    assert engine.info.adapters == ("chat", "loaded later")
    assert set(open_to(server, model="chat").info.adapters) == {"base", "loaded later"}, "the base is one to choose, too"


def test_a_model_of_another_base_is_not_offered(server: ScriptedServer, open_to: Callable[..., RemoteEngine]) -> None:
    server.models = [{"id": "base"}, {"id": "chat", "parent": "base"}, {"id": "other"}, {"id": "theirs", "parent": "other"}]
    engine = open_to(server, model="base")
    assert engine.info.adapters == ("chat",)
    server.models = server.models[:1]
    until(lambda: engine.info.adapters == ())  # seen by itself


@pytest.mark.parametrize(
    ("models", "model", "said"),
    [
        ([{"id": "a"}, {"id": "b"}], None, "several models (a, b): choose one with --engine-model"),
        ([{"id": "a"}], "b", "--engine-model is 'b', but the servers have: a"),
        ([], None, "does not say which models it has"),
    ],
)
def test_which_model_is_meant_must_be_clear(
    models: list[dict[str, Any]], model: str | None, said: str, server: ScriptedServer
) -> None:
    server.models = models
    with pytest.raises(EngineError) as raised:
        open_engine(DEMO, lambda line: None, engine_settings(server.url, model))
    assert said in str(raised.value)


def test_a_server_that_is_not_there_is_said_so(server: ScriptedServer) -> None:
    server.stop()
    with pytest.raises(EngineError, match="cannot be reached"):
        open_engine(DEMO, lambda line: None, engine_settings(server.url))


def test_the_base_is_what_the_server_says_it_loaded_where_that_is_here(server: ScriptedServer) -> None:
    from qlora_chat.models.resolve import BUNDLED

    server.models = [{"id": "scripted", "root": str(BUNDLED / "base")}]
    engine = open_engine(ModelSettings(), lambda line: None, engine_settings(server.url))
    assert (engine.info.base, engine.info.window) == ("base", 512)
    engine.close()
    server.models = [{"id": "scripted", "root": "/models/elsewhere"}]
    with pytest.raises(EngineError, match="--base"):
        open_engine(ModelSettings(), lambda line: None, engine_settings(server.url))


def test_neither_opening_nor_answering_imports_torch(server: ScriptedServer) -> None:
    code = f"""
import sys
from qlora_chat.engines import open_engine
from qlora_chat.prompt import Prompt
from qlora_chat.settings import ModelSettings, Sampling, engine_settings
from qlora_chat.stopping import Stops
engine = open_engine(ModelSettings(model="demo"), lambda line: None, engine_settings({server.url!r}))
print("".join(piece.text for piece in engine.stream(Prompt("", (1, 2, 3)), Sampling(), Stops())))
engine.close()
assert "torch" not in sys.modules, sorted(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == TEXT.strip(), done.stderr
