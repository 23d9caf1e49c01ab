"""`store` and `metadata`: a client's turns are kept and sent as the page's are, and only where it asks for that."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from qlora_chat.api.stored_turns import OURS, StoreOptions, owner_of
from qlora_chat.chat import Chat
from qlora_chat.history import HistoryStore, StoredConversation
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.prompt import DEFAULT_FORMAT
from tests.fakes import FullHistory, ScriptedEngine, ScriptedRecorder
from tests.web.serving import serving_chat

CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Keeping:
    """A server that keeps turns."""

    url: str
    engine: ScriptedEngine
    history: HistoryStore
    recorder: ScriptedRecorder

    def post(self, *texts: str, **fields: Any) -> httpx.Response:
        """Ask with messages that alternate user, assistant, ..."""
        messages = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]
        return httpx.post(self.url + CHAT, json={"model": "scripted", "messages": messages, **fields}, timeout=60)

    def only(self) -> StoredConversation:
        """The one conversation that is kept."""
        (summary,) = self.history.list()
        kept = self.history.read(summary.id)
        assert kept
        return kept


@pytest.fixture(scope="module")
def server() -> Iterator[Keeping]:
    engine, history, recorder = ScriptedEngine("An answer."), MemoryHistory(), ScriptedRecorder()
    with serving_chat(Chat(engine, DEFAULT_FORMAT, history, recorder), logging_on=True, history_on=True) as url:
        yield Keeping(url, engine, history, recorder)


@pytest.fixture
def keeping(server: Keeping) -> Keeping:
    """The server as new."""
    server.history.erase([each.id for each in server.history.list()])
    server.recorder.turns.clear()
    server.engine.answer, server.engine.delay, server.engine.pauses_after = "An answer.", 0.0, None
    server.engine.streams.clear()
    return server


def said(kept: StoredConversation) -> list[str]:
    return [message.content for message in kept.conversation().messages]


def test_nothing_is_kept_unless_a_client_asks(keeping: Keeping) -> None:
    assert keeping.post("hi").status_code == 200
    assert keeping.post("hi", store=False, metadata={"case": "7"}).status_code == 200
    assert keeping.history.list() == []
    assert keeping.recorder.turns == []


def test_a_stored_turn_is_in_the_history_and_goes_to_the_receiver(keeping: Keeping) -> None:
    with openai.OpenAI(base_url=f"{keeping.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(
            model="scripted", messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
            store=True, metadata={"case": "7"}, temperature=0.5, seed=11,
        )  # fmt: skip
    assert answer.choices[0].message.content == "An answer."
    kept = keeping.only()
    assert said(kept) == ["hi", "An answer."]
    assert kept.conversation().messages[1].finish_reason == "stop"
    assert (kept.system, kept.summary.tags, kept.settings["temperature"]) == ("Be brief.", (OURS, "case=7"), 0.5)
    assert kept.turns[1].details["seed"] == 11
    (record,) = keeping.recorder.turns
    assert record.conversation.pairs() == [["hi", "An answer."]]
    assert record.prompt_text.startswith("Be brief.")
    assert record.conversation.tags == (OURS, "case=7")


def test_langchain_stores_too(keeping: Keeping) -> None:
    model = ChatOpenAI(model="scripted", base_url=f"{keeping.url}/v1", api_key=SecretStr("none"), store=True, max_retries=0)
    assert model.invoke("hi").content == "An answer."
    assert said(keeping.only()) == ["hi", "An answer."]


def test_an_answer_is_kept_whole_before_its_end_is_sent(keeping: Keeping, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = keeping.history.finish

    def slowly(*arguments: Any) -> None:
        time.sleep(0.3)
        finish(*arguments)

    monkeypatch.setattr(keeping.history, "finish", slowly)
    keeping.post("hi", store=True)
    assert said(keeping.only()) == ["hi", "An answer."]


def test_the_question_is_kept_before_the_answer_begins(keeping: Keeping) -> None:
    keeping.engine.answer, keeping.engine.pauses_after = "one two three four five", 1
    with openai.OpenAI(base_url=f"{keeping.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(
            model="scripted", messages=[{"role": "user", "content": "hi"}], store=True, stream=True
        )
        next(iter(stream))
        messages = keeping.only().conversation().messages
        assert [(each.role, each.finish_reason) for each in messages] == [("user", None), ("assistant", "partial")]
        assert messages[0].content == "hi"
        assert messages[1].content in ("", "one")
        stream.close()  # the client leaves
    until = time.monotonic() + 60
    while (answer := keeping.only().conversation().messages[1]).finish_reason == "partial":
        assert time.monotonic() < until
        time.sleep(0.02)
    assert answer.finish_reason == "cancelled"
    assert answer.content.startswith("one")


def test_a_conversation_goes_on_under_the_name_that_the_client_gives_it(keeping: Keeping) -> None:
    named = {"store": True, "metadata": {"conversation_id": "my chat"}}
    first = keeping.post("one", **named)
    assert first.headers["x-conversation-id"] == "my chat"
    keeping.post("one", "An answer.", "two", **named)
    assert said(keeping.only()) == ["one", "An answer.", "two", "An answer."]
    keeping.engine.answer = "Another."
    keeping.post("one", "An answer.", "2", **named)  # the question was edited
    keeping.post("one", "An answer.", "2", **named)  # and asked again
    kept = keeping.only()
    assert said(kept) == ["one", "An answer.", "2", "Another."]
    assert kept.summary.turns == 7, "one, its answer, two, its answer, 2, and both of its answers"


def test_a_name_that_was_drawn_can_be_given_back(keeping: Keeping) -> None:
    name = keeping.post("one", store=True).headers["x-conversation-id"]
    keeping.post("one", "An answer.", "two", store=True, metadata={"conversation_id": name})
    assert said(keeping.only()) == ["one", "An answer.", "two", "An answer."]


def test_several_choices_are_branches_after_one_question(keeping: Keeping) -> None:
    assert len(keeping.post("hi", store=True, n=3).json()["choices"]) == 3
    kept = keeping.only()
    question = kept.turns[0].message.id
    assert [turn.parent_id for turn in kept.turns] == [None, question, question, question]
    assert [turn.message.finish_reason for turn in kept.turns[1:]] == ["stop"] * 3
    assert len(keeping.recorder.turns) == 3


def test_a_server_that_keeps_nothing_says_so() -> None:
    engine = ScriptedEngine()
    with serving_chat(Chat(engine, DEFAULT_FORMAT, MemoryHistory())) as url:
        body = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "store": True}
        refused = httpx.post(url + CHAT, json=body, timeout=60)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "store"
    assert "--history" in refused.json()["error"]["message"]
    assert engine.streams == []


def test_a_turn_that_cannot_be_kept_is_not_begun() -> None:
    engine = ScriptedEngine()
    with serving_chat(Chat(engine, DEFAULT_FORMAT, FullHistory()), history_on=True) as url:
        body = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}
        refused = httpx.post(url + CHAT, json=body | {"store": True}, timeout=60)
        assert httpx.post(url + CHAT, json=body, timeout=60).status_code == 200
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_stored")
    assert "the disk is full" in refused.json()["error"]["message"]
    assert len(engine.streams) == 1, "the one that was not to be stored"


def test_a_name_means_another_conversation_to_another_owner() -> None:
    named = {"conversation_id": "my chat"}
    ids = {StoreOptions.of(named, owner).id for owner in (None, owner_of("Bearer a"), owner_of("Bearer b"))}
    assert len(ids) == 3
    drawn = StoreOptions.of({}, None)
    assert drawn.id == drawn.name
    assert StoreOptions.of({"conversation_id": drawn.id}, owner_of("Bearer a")).id != drawn.id, "knowing an id opens nothing"


@pytest.mark.parametrize("metadata", [{"a": 1}, {"a": "x" * 513}, {"": "x"}, {str(n): "" for n in range(17)}, "text", None])
def test_metadata_is_as_openai_takes_it(keeping: Keeping, metadata: Any) -> None:
    refused = keeping.post("hi", store=True, metadata=metadata)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"].startswith("metadata")
    assert keeping.engine.streams == []
