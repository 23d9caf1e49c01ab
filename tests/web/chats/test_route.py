"""The routes of the list: whose conversations they show and change, and what they refuse."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from qlora_chat.chat import Chat
from qlora_chat.history import ConversationInfo
from qlora_chat.messages import Conversation, Message
from qlora_chat.settings import ServeSettings
from qlora_chat.web.sessions import owner_of
from tests.fakes import ScriptedEngine, scripted_chat
from tests.web.serving import serving_chat

SHARED = ServeSettings("127.1", token="correct horse")
HERS, HIS = "a" * 64, "b" * 64
CHATS = "/page/chats"


@pytest.fixture(scope="module")
def chat() -> Chat:
    return scripted_chat(ScriptedEngine("Hello there."))


@pytest.fixture(scope="module")
def client(chat: Chat) -> Iterator[httpx.Client]:
    """A client of a page that several people share."""
    with (
        serving_chat(chat, SHARED, history_on=True) as url,
        httpx.Client(base_url=url, headers={"authorization": "Bearer correct horse"}, timeout=60) as client,
    ):
        yield client


@pytest.fixture
def hers(chat: Chat) -> str:
    """A conversation of hers, and of nobody else."""
    chat.history.erase([each.id for each in chat.history.list()])
    talk = Conversation().adding(Message("user", "secret plans")).adding(Message("assistant", "hush", (), "stop"))
    chat.history.save(talk, ConversationInfo(owner=owner_of(HERS)))
    return talk.id


def as_(secret: str) -> dict[str, str]:
    return {"x-qlora-chat-owner": secret}


def listed(client: httpx.Client, secret: str, **query: Any) -> list[str]:
    rows = client.get(CHATS, params=query, headers=as_(secret)).json()["rows"]
    return re.findall(r'class="chat-title own" dir="auto" title="(.*?)"', rows)


def change(client: httpx.Client, secret: str, **request: Any) -> httpx.Response:
    return client.post(CHATS, json=request, headers=as_(secret))


def test_people_on_a_shared_page_see_and_change_their_own_only(client: httpx.Client, chat: Chat, hers: str) -> None:
    assert listed(client, HERS) == listed(client, HERS, q="secret") == ["secret plans"]
    for stranger in (HIS, "", "short"):
        assert listed(client, stranger) == listed(client, stranger, q="secret") == []
        for what in ({"title": "stolen"}, {"tags": ""}, {"pinned": True}, {"deleted": True}, {"deleted": False}):
            assert change(client, stranger, id=hers, **what).status_code == 404
        exported = client.post(f"{CHATS}/export", json={"ids": [hers], "format": "json"}, headers=as_(stranger))
        assert exported.status_code == 422
        assert "secret" not in exported.text
    assert change(client, HERS, id=hers, title="mine").status_code == 200
    assert listed(client, HERS) == ["mine"]


@pytest.mark.parametrize(
    "request_body",
    [
        {},
        {"id": "x", "erased": True},
        {"id": 5, "title": "x"},
        {"id": "x" * 500, "deleted": True},
        {"deleted": True},
        [],
        "x",
        {"id": "x", "title": "x", "deleted": True},
    ],
)
def test_requests_that_the_page_does_not_send_are_refused(client: httpx.Client, request_body: Any) -> None:
    answer = client.post(CHATS, json=request_body, headers=as_(HERS))
    assert answer.status_code == 422
    assert client.post(f"{CHATS}/export", json=request_body, headers=as_(HERS)).status_code == 422


def test_a_change_without_sense_says_what_is_wrong(client: httpx.Client, hers: str) -> None:
    assert "at least one character" in change(client, HERS, id=hers, title="  ").json()["problem"]
    assert change(client, HERS, id=hers, tags=["work"]).status_code == 422
    assert client.get(f"{CHATS}?limit=0").status_code == 422
    assert client.get(CHATS, params={"before": "nobody"}, headers=as_(HERS)).json() == {"rows": "", "next": None}


def test_a_pinned_conversation_stays_pinned_with_other_tags(client: httpx.Client, chat: Chat, hers: str) -> None:
    change(client, HERS, id=hers, pinned=True)
    change(client, HERS, id=hers, tags="work, #travel")
    summary = chat.history.summary(hers)
    assert summary
    assert set(summary.tags) == {"pinned", "work", "travel"}
    change(client, HERS, id=hers, pinned=False)
    summary = chat.history.summary(hers)
    assert summary
    assert set(summary.tags) == {"work", "travel"}


def test_a_visitor_of_a_shared_page_cannot_start_saving(client: httpx.Client) -> None:
    answer = client.post(f"{CHATS}/save", headers=as_(HERS))
    assert answer.status_code == 422
    assert "its operator can" in answer.json()["problem"]


def test_deleting_takes_the_login_and_this_site(client: httpx.Client, hers: str) -> None:
    request = {"id": hers, "deleted": True}
    foreign = {**as_(HERS), "origin": "http://elsewhere.example"}
    assert client.post(CHATS, json=request, headers=foreign).status_code == 403
    assert httpx.post(client.base_url.join(CHATS), json=request, headers=as_(HERS)).status_code == 401
    assert listed(client, HERS) == ["secret plans"]


def test_an_import_is_the_importers_own(client: httpx.Client, hers: str) -> None:
    file = client.post(f"{CHATS}/export", json={"ids": [], "format": "jsonl"}, headers=as_(HERS))
    assert file.headers["content-disposition"] == "attachment; filename*=UTF-8''conversations.jsonl"
    report = client.post(f"{CHATS}/import?name=x.jsonl", content=file.content, headers=as_(HIS)).json()
    assert report == ["1 added"], "what she has is not his, and he is not told of it"
    again = client.post(f"{CHATS}/import?name=x.jsonl", content=file.content, headers=as_(HIS)).json()
    assert again == ["0 added", "1 was there already"]
    assert listed(client, HIS) == listed(client, HERS) == ["secret plans"]


def test_an_import_gives_reasons_and_no_path_of_the_server(client: httpx.Client) -> None:
    name = "../../etc/<my> file.json"
    refused = client.post(f"{CHATS}/import", params={"name": name}, content=b"no json", headers=as_(HERS))
    assert refused.status_code == 422
    assert refused.json()["problem"].startswith("_my_ file.json is neither JSON")
    good = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
    mixed = json.dumps(good) + "\n{}\n"
    report = client.post(f"{CHATS}/import", params={"name": "mixed.jsonl"}, content=mixed, headers=as_(HERS)).json()
    assert [each.partition(":")[0] for each in report] == ["1 added", "mixed.jsonl, line 2"]
