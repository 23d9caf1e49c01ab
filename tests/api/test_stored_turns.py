"""`store` and `metadata`: a client's turns are saved and sent as the page's are, and only if it asks for that."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from qlora_chat.api.stored_turns import API_TAG, StoreOptions, owner_of
from qlora_chat.chat import Chat
from qlora_chat.history import HistoryStore, StoredConversation
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.messages import Conversation, Message
from qlora_chat.prompt import DEFAULT_FORMAT
from qlora_chat.settings import ServeSettings
from tests.fakes import FullHistory, ScriptedEngine, ScriptedRecorder
from tests.web.serving import serving_chat

CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class StoringServer:
    """A server that stores turns."""

    url: str
    engine: ScriptedEngine
    history: HistoryStore
    recorder: ScriptedRecorder

    def post(self, *messages: str, **fields: Any) -> httpx.Response:
        """Ask with messages that alternate user, assistant, ..."""
        sent = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(messages)]
        return httpx.post(self.url + CHAT, json={"model": "scripted", "messages": sent, **fields}, timeout=60)

    def only(self) -> StoredConversation:
        """The only stored conversation."""
        (summary,) = self.history.list()
        stored = self.history.read(summary.id)
        assert stored
        return stored


@pytest.fixture(scope="module")
def server() -> Iterator[StoringServer]:
    engine, history, recorder = ScriptedEngine("An answer."), MemoryHistory(), ScriptedRecorder()
    with serving_chat(Chat(engine, DEFAULT_FORMAT, history, recorder), logging_on=True, history_on=True) as url:
        yield StoringServer(url, engine, history, recorder)


@pytest.fixture
def storing(server: StoringServer) -> StoringServer:
    """The server as new."""
    server.history.erase([each.id for each in server.history.list()])
    server.recorder.turns.clear()
    server.engine.answer, server.engine.delay, server.engine.pauses_after = "An answer.", 0.0, None
    server.engine.streams.clear()
    return server


def texts(stored: StoredConversation) -> list[str]:
    return [message.content for message in stored.conversation().messages]


def test_nothing_is_stored_unless_a_client_asks(storing: StoringServer) -> None:
    assert storing.post("hi").status_code == 200
    assert storing.post("hi", store=False, metadata={"case": "7"}).status_code == 200
    assert storing.history.list() == []
    assert storing.recorder.turns == []


def test_a_stored_turn_is_in_the_history_and_goes_to_the_receiver(storing: StoringServer) -> None:
    with openai.OpenAI(base_url=f"{storing.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(
            model="scripted", messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
            store=True, metadata={"case": "7"}, temperature=0.5, seed=11,
        )  # fmt: skip
    assert answer.choices[0].message.content == "An answer."
    stored = storing.only()
    assert texts(stored) == ["hi", "An answer."]
    assert stored.conversation().messages[1].finish_reason == "stop"
    assert (stored.system, stored.summary.tags, stored.settings["temperature"]) == ("Be brief.", (API_TAG, "case=7"), 0.5)
    assert stored.turns[1].details["seed"] == 11
    (record,) = storing.recorder.turns
    assert record.conversation.pairs() == [["hi", "An answer."]]
    assert record.prompt_text.startswith("Be brief.")
    assert record.conversation.tags == (API_TAG, "case=7")


def test_langchain_stores_too(storing: StoringServer) -> None:
    model = ChatOpenAI(model="scripted", base_url=f"{storing.url}/v1", api_key=SecretStr("none"), store=True, max_retries=0)
    assert model.invoke("hi").content == "An answer."
    assert texts(storing.only()) == ["hi", "An answer."]


def test_an_answer_is_saved_whole_before_its_end_is_sent(storing: StoringServer, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = storing.history.finish

    def slowly(*arguments: Any) -> None:
        time.sleep(0.3)
        finish(*arguments)

    monkeypatch.setattr(storing.history, "finish", slowly)
    storing.post("hi", store=True)
    assert texts(storing.only()) == ["hi", "An answer."]


def test_the_question_is_saved_before_the_answer_begins(storing: StoringServer) -> None:
    storing.engine.answer, storing.engine.pauses_after = "one two three four five", 1
    with openai.OpenAI(base_url=f"{storing.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(
            model="scripted", messages=[{"role": "user", "content": "hi"}], store=True, stream=True
        )
        next(iter(stream))
        messages = storing.only().conversation().messages
        assert [(each.role, each.finish_reason) for each in messages] == [("user", None), ("assistant", "partial")]
        assert messages[0].content == "hi"
        assert messages[1].content in ("", "one")
        stream.close()  # the client leaves
    until = time.monotonic() + 60
    while (answer := storing.only().conversation().messages[1]).finish_reason == "partial":
        assert time.monotonic() < until
        time.sleep(0.02)
    assert answer.finish_reason == "cancelled"
    assert answer.content.startswith("one")


def test_a_conversation_continues_under_the_clients_name(storing: StoringServer) -> None:
    named = {"store": True, "metadata": {"conversation_id": "my chat"}}
    first = storing.post("one", **named)
    assert first.headers["x-conversation-id"] == "my chat"
    storing.post("one", "An answer.", "two", **named)
    assert texts(storing.only()) == ["one", "An answer.", "two", "An answer."]
    storing.engine.answer = "Another."
    storing.post("one", "An answer.", "2", **named)  # the question was edited
    storing.post("one", "An answer.", "2", **named)  # and asked again
    stored = storing.only()
    assert texts(stored) == ["one", "An answer.", "2", "Another."]
    assert stored.summary.turns == 7, "one, its answer, two, its answer, 2, and both of its answers"


def test_a_name_that_no_header_carries_is_a_name(storing: StoringServer) -> None:
    for text in ("one\x00two", "one\r\nx-evil: 1", "Größe"):
        answer = storing.post("hi", store=True, metadata={"conversation_id": text})
        assert answer.status_code == 200
        assert "x-evil" not in answer.headers
    assert len(storing.history.list()) == 3


def test_a_generated_name_can_be_sent_back(storing: StoringServer) -> None:
    name = storing.post("one", store=True).headers["x-conversation-id"]
    storing.post("one", "An answer.", "two", store=True, metadata={"conversation_id": name})
    assert texts(storing.only()) == ["one", "An answer.", "two", "An answer."]


def test_several_choices_are_branches_after_one_question(storing: StoringServer) -> None:
    assert len(storing.post("hi", store=True, n=3).json()["choices"]) == 3
    stored = storing.only()
    question = stored.turns[0].message.id
    assert [turn.parent_id for turn in stored.turns] == [None, question, question, question]
    assert [turn.message.finish_reason for turn in stored.turns[1:]] == ["stop"] * 3
    assert len(storing.recorder.turns) == 3


def test_a_server_without_a_store_says_so() -> None:
    engine = ScriptedEngine()
    with serving_chat(Chat(engine, DEFAULT_FORMAT, MemoryHistory())) as url:
        body = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "store": True}
        refused = httpx.post(url + CHAT, json=body, timeout=60)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "store"
    assert "--history" in refused.json()["error"]["message"]
    assert engine.streams == []


def test_a_turn_that_cannot_be_stored_is_not_started() -> None:
    engine = ScriptedEngine()
    with serving_chat(Chat(engine, DEFAULT_FORMAT, FullHistory()), history_on=True) as url:
        body = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}
        refused = httpx.post(url + CHAT, json=body | {"store": True}, timeout=60)
        assert httpx.post(url + CHAT, json=body, timeout=60).status_code == 200
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_stored")
    assert "the disk is full" in refused.json()["error"]["message"]
    assert len(engine.streams) == 1, "the one that was not to be stored"


def test_the_same_name_is_another_conversation_for_another_owner() -> None:
    named = {"conversation_id": "my chat"}
    keys = {StoreOptions.of(named, owner).name_key for owner in (None, owner_of("Bearer a"), owner_of("Bearer b"))}
    assert len(keys) == 3
    history, generated = MemoryHistory(), StoreOptions.of({}, None)
    assert generated.find_id(history) == generated.name, "a generated name is the id where nobody owns a conversation"
    claimed = StoreOptions.of({"conversation_id": generated.name}, owner_of("Bearer a"))
    assert claimed.find_id(history) is None, "an id opens nothing"


def test_ids_cannot_be_computed_from_names(storing: StoringServer) -> None:
    named = {"store": True, "metadata": {"conversation_id": "my chat"}}
    storing.post("one", **named)
    first = storing.only().summary.id
    assert uuid.UUID(first).version == 4, "random"
    storing.history.erase([first])
    storing.post("one", **named)
    assert storing.only().summary.id != first


def test_a_conversation_of_an_earlier_version_goes_on_under_its_derived_id(storing: StoringServer) -> None:
    derived = Conversation(str(uuid.uuid5(uuid.NAMESPACE_OID, " my chat")))
    storing.history.save(derived.adding(Message("user", "one")).adding(Message("assistant", "An answer.")))
    storing.post("one", "An answer.", "two", store=True, metadata={"conversation_id": "my chat"})
    assert texts(storing.only()) == ["one", "An answer.", "two", "An answer."]


def test_two_tokens_of_one_loopback_server_have_conversations_of_their_own() -> None:
    history = MemoryHistory()
    settings = ServeSettings(token="the page's", api_tokens=("token-a", "token-b"))
    with serving_chat(Chat(ScriptedEngine(), DEFAULT_FORMAT, history), settings, history_on=True) as url:
        for token in ("token-a", "token-b", "the page's"):
            body = {"model": "scripted", "messages": [{"role": "user", "content": token}], "store": True}
            body |= {"metadata": {"conversation_id": "my chat"}}
            sent = httpx.post(url + CHAT, json=body, headers={"authorization": f"Bearer {token}"}, timeout=60)
            assert sent.status_code == 200
    assert len(history.list()) == 3
    for token in ("token-a", "token-b"):
        assert [each.title for each in history.list(owner=owner_of(f"Bearer {token}"))] == [token]


@pytest.mark.parametrize("metadata", [{"a": 1}, {"a": "x" * 513}, {"": "x"}, {str(n): "" for n in range(17)}, "text"])
def test_metadata_has_openais_limits(storing: StoringServer, metadata: Any) -> None:
    refused = storing.post("hi", store=True, metadata=metadata)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"].startswith("metadata")
    assert storing.engine.streams == []
