"""A shared page over HTTP: what a browser sees of its own conversation from another process, and another browser of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from qlora_chat.chat import AnswerOptions, Chat
from qlora_chat.settings import Sampling, ServeSettings
from qlora_chat.web.session import ConversationRef, Session
from tests.fakes import ScriptedEngine, scripted_chat
from tests.web.serving import serving_chat

SHARED = ServeSettings("127.1", token="correct horse")
LOAD, END_ANSWER, SELECT = "load", "end_answer", "select"
"""Names of events, which are those of their handlers."""
HERS = "a" * 64


class Browser:
    """Sends the page's events as page.js does, from one tab."""

    def __init__(self, url: str) -> None:
        self.tab = secrets.token_hex(6)
        self.client = httpx.Client(base_url=url, headers={"authorization": "Bearer correct horse"}, timeout=60)
        self.events = {each["api_name"]: each["id"] for each in self.client.get("/config").json()["dependencies"]}

    def load(self, conversation: str, secret: str) -> str:
        """Open the page on a conversation; the messages that it shows."""
        self.run(LOAD, [json.dumps({"conversation": conversation, "browser": secret})])
        return self.messages(conversation, secret)

    def messages(self, conversation: str, secret: str) -> str:
        """The messages that the server gives this browser."""
        query = {"conversation": conversation.split(" ")[0]}
        return self.client.get("/page/messages", params=query, headers={"x-qlora-chat-owner": secret}).text

    def run(self, event: str, values: list[Any], event_data: dict[str, Any] | None = None) -> str:
        body = {"fn_index": self.events[event], "data": values, "session_hash": self.tab, "event_data": event_data}
        answer = self.client.post("/gradio_api/run/predict", json=body)
        assert answer.status_code == 200
        return answer.text


@pytest.fixture(scope="module")
def chat() -> Chat:
    return scripted_chat(ScriptedEngine("Hello there."))


@pytest.fixture(scope="module")
def url(chat: Chat) -> Iterator[str]:
    with serving_chat(chat, SHARED, history_on=True) as url:
        yield url


@pytest.fixture(scope="module")
def ref(chat: Chat, url: str) -> str:
    """Reference to a conversation that another process stored, for the browser with the secret HERS."""
    session = Session(chat, hashlib.sha256(HERS.encode()).hexdigest())
    assert session.send("my secret plans", AnswerOptions(Sampling())).wait(60)
    return str(ConversationRef.of(session.conversation))


@pytest.fixture
def browse(url: str) -> Iterator[Callable[[], Browser]]:
    """Opens browsers, with nothing stored in them."""
    with contextlib.ExitStack() as opened:

        def browser() -> Browser:
            browser = Browser(url)
            opened.callback(browser.client.close)
            return browser

        yield browser


def test_a_browser_goes_on_with_its_own_conversation(browse: Callable[[], Browser], ref: str) -> None:
    assert "my secret plans" in browse().load(ref, HERS)


def test_a_page_whose_process_is_gone_goes_on_by_the_cookie_that_it_left(
    browse: Callable[[], Browser], url: str, ref: str
) -> None:
    browser = browse()
    browser.client.cookies.set(f"qlora_chat_owner{httpx.URL(url).port}", HERS)
    head = ref.split(" ")[1]
    assert head in browser.run(END_ANSWER, ["", ref])
    assert "my secret plans" in browser.messages(ref, HERS)


@pytest.mark.parametrize(("event", "values"), [(END_ANSWER, [""]), (SELECT, [])])
def test_another_browser_sees_and_changes_nothing(
    browse: Callable[[], Browser], ref: str, event: str, values: list[str]
) -> None:
    event_data = {"id": ref.split(" ")[1]} if event == SELECT else None
    assert ref.split(" ")[1] not in browse().run(event, [*values, ref], event_data)
    for secret in ("m" * 64, "", "short"):
        assert "secret plans" not in browse().messages(ref, secret)
    assert "secret plans" not in browse().load(ref, "m" * 64)
    assert "my secret plans" in browse().load(ref, HERS), "it is still there"
