"""The list of past conversations, in a real browser over a real history file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from qlora_chat.chat import AnswerOptions, Chat
from qlora_chat.settings import ServeSettings
from qlora_chat.web.past_conversations import PastConversations
from qlora_chat.web.session import Session
from tests.fakes import ScriptedEngine, ScriptedRecorder, scripted_chat
from tests.history.conftest import sqlite_history
from tests.web.driving import answers, ready, say, settled, wait_for
from tests.web.serving import serving_chat
from tests.web.test_session import OPTIONS, answered

SCREENSHOT = os.environ.get("QLORA_CHAT_SCREENSHOT")


@pytest.fixture
def chat(tmp_path: Path) -> Iterator[Chat]:
    with closing(sqlite_history(tmp_path / "chats.db")) as store:
        yield replace(scripted_chat(ScriptedEngine("A scripted answer.")), history=store, recorder=ScriptedRecorder())


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1100, "height": 900})
    yield context
    context.close()


def opened_at(context: BrowserContext, url: str) -> Page:
    page = context.new_page()
    page.goto(url)
    ready(page)
    return page


@pytest.mark.browser
def test_past_conversations_are_found_opened_renamed_and_deleted(chat: Chat, context: BrowserContext) -> None:
    with serving_chat(chat, history_on=True, logging_on=True) as url:
        page = opened_at(context, url)
        expect(page.locator("#logging")).to_contain_text("saved and logged")
        for text in ("Where is the lighthouse?", "What is <b>bold</b>?"):
            say(page, text)
            expect(page.locator("#messages .answer")).to_contain_text("A scripted answer.")
            settled(page)
            page.click("#new")
            expect(page.locator("#messages .answer")).to_have_count(0)
        labels = page.locator("#found label")
        expect(labels).to_have_count(2)
        expect(labels.first).to_contain_text("What is <b>bold</b>?")
        page.fill("#find textarea, #find input", "lightho")
        expect(labels).to_have_count(1)
        labels.first.click()
        expect(page.locator("#messages .question")).to_contain_text("Where is the lighthouse?")
        if SCREENSHOT:
            page.screenshot(path=SCREENSHOT)
        page.fill("#title textarea, #title input", "My lighthouse")
        page.click("#rename")
        expect(labels.first).to_contain_text("My lighthouse")
        say(page, "and more?")
        wait_for(page, lambda: len(answers(page)) == 2)  # an opened conversation goes on
        settled(page)
        page.on("dialog", lambda dialog: dialog.accept())
        page.click("#delete")
        expect(page.locator("#notice")).to_contain_text("Deleted, here and wherever it was sent.")
        expect(page.locator("#messages .answer")).to_have_count(0)
    assert [each.title for each in chat.history.list()] == ["What is <b>bold</b>?"]
    assert isinstance(chat.recorder, ScriptedRecorder)
    assert len(chat.recorder.tombstones) == 1


@pytest.mark.browser
def test_without_a_history_there_is_no_list(context: BrowserContext) -> None:
    with serving_chat(scripted_chat()) as url:
        expect(opened_at(context, url).locator("#past")).to_have_count(0)


def test_on_a_shared_page_a_browser_sees_its_own_only(chat: Chat) -> None:
    past, mine, other = PastConversations(chat), Session(chat, "mine"), Session(chat, "other")
    answered(mine, "my secret plans")
    assert [label.split(" · ")[0] for label, _ in past.choices("", "mine")] == ["my secret plans"]
    assert past.choices("", "other") == []
    assert past.choices("secret", "other") == []
    conversation_id = mine.conversation.id
    assert past.open(conversation_id, other) is None
    assert not past.rename(conversation_id, "stolen", other)
    assert not past.delete(conversation_id, other)
    for hostile in (None, 5, [], {"a": 1}, "x" * 10_000):
        assert past.open(hostile, mine) is None
    assert past.delete(conversation_id, mine)
    assert mine.conversation.messages == ()


def test_a_page_that_shows_a_deleted_conversation_does_not_bring_it_back(chat: Chat) -> None:
    first, second = Session(chat), Session(chat)
    answered(first, "to be deleted")
    assert PastConversations(chat).open(first.conversation.id, second)
    assert PastConversations(chat).delete(first.conversation.id, second)
    with pytest.raises(RuntimeError, match="was deleted there"):
        first.send("still here?", OPTIONS)
    assert chat.history.list() == []
    assert first.send("a new one", OPTIONS).wait(60), "and the page can go on"


def test_a_stale_tab_shows_the_newest_and_can_go_on(chat: Chat) -> None:
    first, second = Session(chat), Session(chat)
    answered(first, "one")
    PastConversations(chat).open(first.conversation.id, second)
    answered(second, "two")
    with pytest.raises(RuntimeError, match="gone on in another window"):
        first.send("three", AnswerOptions(OPTIONS.sampling))
    assert first.conversation.pairs() == second.conversation.pairs()
    answered(first, "three")
    assert [question for question, _ in first.conversation.pairs()] == ["one", "two", "three"]


def test_an_engine_that_refuses_leaves_a_page_that_can_send_again(chat: Chat) -> None:
    assert isinstance(chat.engine, ScriptedEngine)
    session = Session(chat)
    answered(session, "one")
    chat.engine.refusal = ValueError("no room")
    for _ in range(2):
        with pytest.raises(ValueError, match="no room"):
            session.send("two", OPTIONS)
        with pytest.raises(ValueError, match="no room"):
            session.retry(session.conversation.messages[-1].id, OPTIONS)
    chat.engine.refusal = None
    answered(session, "two")
    assert session.conversation.pairs() == [["one", "A scripted answer."], ["two", "A scripted answer."]]


def test_beyond_this_machine_the_page_is_shared() -> None:
    from qlora_chat.server.site import Site

    assert Site(ServeSettings("0.0.0.0", token="correct horse")).features.shared
    assert not Site(ServeSettings()).features.shared
