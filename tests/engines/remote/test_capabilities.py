"""Servers that take less than vLLM: refused fields are omitted, with a notice."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from qlora_chat.chat import AnswerOptions, Chat
from qlora_chat.engines import EngineError, SchemaError
from qlora_chat.engines.remote.engine import RemoteEngine
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.messages import AnswerSchema, Conversation
from qlora_chat.prompt import DEFAULT_FORMAT
from tests.engines.remote.requests import ANSWER, GREEDY, PROMPT, STOPS, TEXT, text_of
from tests.fakes import ScriptedServer

MOOD = AnswerSchema('{"type": "object", "properties": {"mood": {"enum": ["sad"]}}, "required": ["mood"]}')


def test_refused_fields_are_omitted_with_a_notice(server: ScriptedServer, open_to: Callable[..., RemoteEngine]) -> None:
    server.refused_fields = frozenset({"top_k", "min_p", "return_token_ids", "stream_options", "generation_config"})
    server.gives_ids = False
    engine = open_to(server)
    assert text_of(engine.stream(PROMPT, GREEDY, STOPS)) == TEXT
    for missing in ("has no top-k", "has no min-p"):
        assert any(missing in line for line in engine.info.notices)
    assert not any("repetition" in line for line in engine.info.notices)


@pytest.mark.parametrize("counts_bos", [True, False], ids=["server-adds-bos", "server-adds-none"])
def test_a_server_of_text_is_sent_one_bos_and_no_token_that_was_typed(
    counts_bos: bool, server: ScriptedServer, open_to: Callable[..., RemoteEngine]
) -> None:
    server.text_only, server.counts_bos, server.gives_ids = True, counts_bos, False
    chat = Chat(open_to(server), DEFAULT_FORMAT, MemoryHistory())
    turn = chat.reply(Conversation(), "Is </s> the end, or <s>?", AnswerOptions(GREEDY))
    list(turn)
    assert turn.answer == TEXT.strip()
    assert turn.finish is not None
    assert turn.finish.completion_tokens == len(ANSWER)
    sent = "### Human: Is < /s> the end, or < s>?### Assistant:"
    assert server.requests[0]["prompt"] == (sent if counts_bos else "<s> " + sent), (
        "with the space that the tokenizer would have put there"
    )


def test_a_template_with_special_tokens_is_refused_where_they_would_be_letters(
    server: ScriptedServer, open_to: Callable[..., RemoteEngine]
) -> None:
    server.text_only, server.gives_ids, server.reads_special_tokens = True, False, False
    engine = open_to(server)
    assert any("reads special tokens in a text as letters" in line for line in engine.info.notices)
    assert text_of(engine.stream(PROMPT, GREEDY, STOPS)) == TEXT, "a prompt without any is as good there"
    ended = replace(PROMPT, text=PROMPT.text + "</s>", ids=(*PROMPT.ids, 2))
    with pytest.raises(EngineError, match="reads </s> of the chat template as letters"):
        text_of(engine.stream(ended, GREEDY, STOPS))


def test_the_probe_names_stop_tokens_since_some_servers_refuse_any(
    server: ScriptedServer, open_to: Callable[..., RemoteEngine]
) -> None:
    server.refused_fields = frozenset({"stop_token_ids"})
    assert text_of(open_to(server).stream(PROMPT, GREEDY, STOPS)) == TEXT


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


def test_a_schema_goes_to_the_servers_that_keep_to_it(
    server: ScriptedServer, second: ScriptedServer, open_to: Callable[..., RemoteEngine]
) -> None:
    second.enforces_schemas = False
    engine = open_to(server, second)
    engine.check_schema(MOOD)
    assert all(text_of(engine.stream(PROMPT, GREEDY, STOPS, schema=MOOD)) == '{"mood": "sad"}' for _ in range(4))
    sent = server.requests[-1]["response_format"]["json_schema"]
    assert (sent["schema"], sent["strict"]) == (json.loads(MOOD.text), True)
    assert text_of(engine.stream(PROMPT, GREEDY, STOPS)) == TEXT


@pytest.mark.parametrize("refused", [frozenset[str](), frozenset({"response_format"})], ids=["ignores-it", "refuses-it"])
def test_a_schema_is_refused_where_no_server_keeps_to_it(
    refused: frozenset[str], server: ScriptedServer, open_to: Callable[..., RemoteEngine]
) -> None:
    server.enforces_schemas, server.refused_fields = False, refused
    with pytest.raises(SchemaError, match="do not keep to response_format"):
        open_to(server).check_schema(MOOD)


def test_an_answer_with_a_schema_that_breaks_off_is_an_error(
    server: ScriptedServer, second: ScriptedServer, open_to: Callable[..., RemoteEngine]
) -> None:
    engine = open_to(server, second)
    engine.check_schema(MOOD)
    for each in (server, second):
        each.reply = lambda request, tokens=each.tokens: tokens(request, 2)
    with pytest.raises(EngineError, match="broke off after 2 tokens"):
        text_of(engine.stream(PROMPT, GREEDY, STOPS, schema=MOOD))
