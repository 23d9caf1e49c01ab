"""Selection of the model, its tokenizer, and the adapters on offer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from qlora_chat.engines import AnsweredBy, EngineError
from qlora_chat.engines.open import open_engine
from qlora_chat.engines.remote.engine import RemoteEngine
from qlora_chat.engines.remote.server import Timeouts
from qlora_chat.settings import ModelSettings, engine_settings
from tests.engines.remote.requests import DEMO, GREEDY, PROMPT, STOPS, TEXT, until
from tests.fakes import Reply, ScriptedServer, sse


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
    assert set(open_to(server, model="chat").info.adapters) == {"base", "loaded later"}, "the base can be chosen as well"


def test_the_server_says_what_has_answered(server: ScriptedServer, open_to: Callable[..., RemoteEngine]) -> None:
    server.models = [{"id": "base"}, {"id": "chat", "parent": "base"}]
    engine = open_to(server, model="base")
    known = {"base": AnsweredBy(engine.info.adapter), "chat": AnsweredBy("chat"), "file.gguf": None}
    for said, expected in known.items():
        server.reply = _naming(said, server)
        *_, last = engine.stream(PROMPT, GREEDY, STOPS, "chat")
        assert last.finish
        assert last.finish.answered_by == expected


def _naming(model: str, server: ScriptedServer) -> Reply:
    line = f'data: {{"choices": [], "model": "{model}"}}\n\n'.encode()
    return lambda request: iter([line, *server.says(request)])


def test_a_model_of_another_base_is_not_offered(server: ScriptedServer, open_to: Callable[..., RemoteEngine]) -> None:
    server.models = [{"id": "base"}, {"id": "chat", "parent": "base"}, {"id": "other"}, {"id": "theirs", "parent": "other"}]
    engine = open_to(server, model="base", timeouts=Timeouts(health=0.1))
    assert engine.info.adapters == ("chat",)
    server.models = server.models[:1]
    until(lambda: engine.info.adapters == ())  # seen by itself


@pytest.mark.parametrize(
    ("models", "model", "message"),
    [
        ([{"id": "a"}, {"id": "b"}], None, "several models (a, b): choose one with --engine-model"),
        ([{"id": "a"}], "b", "--engine-model is 'b', but the servers have: a"),
        ([], None, "does not say which models it has"),
    ],
)
def test_which_model_is_meant_must_be_clear(
    models: list[dict[str, Any]], model: str | None, message: str, server: ScriptedServer
) -> None:
    server.models = models
    with pytest.raises(EngineError) as raised:
        open_engine(DEMO, lambda line: None, engine_settings(server.url, model))
    assert message in str(raised.value)


def test_an_unreachable_server_is_an_error(server: ScriptedServer) -> None:
    server.stop()
    with pytest.raises(EngineError, match="cannot be reached"):
        open_engine(DEMO, lambda line: None, engine_settings(server.url))


def test_the_base_is_what_the_server_says_it_loaded_where_that_is_here(server: ScriptedServer) -> None:
    from qlora_chat.models.locate import BUNDLED

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
from qlora_chat.engines.open import open_engine
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


@pytest.mark.parametrize(
    ("models", "told"),
    [
        ([{"id": "m", "description": "x" * 3_000_000}], "lists its models in more than 2,097,152 bytes"),
        ([{"id": f"m{number}"} for number in range(1001)], "lists 1,001 models; up to 1,000 are read"),
        ([{"id": "x" * 257}], "256 characters at most, all printable: 'xxx"),
        ([{"id": "m\x1b]0;title\x07"}], r"256 characters at most, all printable: 'm\\x1b"),
    ],
)
def test_a_list_of_models_that_means_harm_is_refused_in_few_words(
    models: list[dict[str, Any]], told: str, server: ScriptedServer, open_to: Callable[..., RemoteEngine]
) -> None:
    server.models = models
    with pytest.raises(EngineError, match=told) as raised:
        open_to(server)
    assert len(str(raised.value)) < 400


def test_many_models_to_choose_from_are_not_all_printed(server: ScriptedServer, open_to: Callable[..., RemoteEngine]) -> None:
    server.models = [{"id": f"m{number}"} for number in range(1000)]
    with pytest.raises(EngineError, match=r"m0, m1, .*m19, and 980 more\): choose one with --engine-model"):
        open_to(server)


def test_a_probe_that_never_ends_is_given_up(server: ScriptedServer, open_to: Callable[..., RemoteEngine]) -> None:
    server.reply = lambda request: (sse(text=" a") for _ in count())
    with pytest.raises(EngineError, match="does not end an answer after 4 tokens"):
        open_to(server)
    until(lambda: server.cut_off)
