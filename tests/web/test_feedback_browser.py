"""Thumbs, a comment and a better answer, in a real browser, down to what the history and the receiver get."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests
from playwright.sync_api import BrowserContext, Page, expect

from qlora_chat.chat import Chat
from qlora_chat.history import Feedback
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.prompt import DEFAULT_FORMAT
from tests.fakes import ScriptedEngine, ScriptedRecorder
from tests.web.driving import LONG, STEP, opened, ready, say, settled
from tests.web.serving import Served, serving_chat

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(ScriptedEngine(), DEFAULT_FORMAT, MemoryHistory(), ScriptedRecorder())


@pytest.fixture(scope="module")
def rated(chat: Chat) -> Iterator[Served]:
    engine = chat.engine
    assert isinstance(engine, ScriptedEngine)
    with serving_chat(chat, logging_on=True) as url:
        yield Served(url, engine)


@pytest.fixture
def page(context: BrowserContext, rated: Served, chat: Chat) -> Page:
    """A page on which "Sydney." was answered to one question."""
    rated.engine.answer, rated.engine.delay = "The capital is **Sydney**.", 0.0
    recorder(chat).feedbacks.clear()
    page = opened(context, rated)
    say(page, "Capital of Australia?")
    settled(page)
    return page


def recorder(chat: Chat) -> ScriptedRecorder:
    assert isinstance(chat.recorder, ScriptedRecorder)
    return chat.recorder


def kept(chat: Chat) -> list[Feedback]:
    """What the history has of the newest conversation."""
    found = chat.history.read(chat.history.list()[0].id)
    assert found
    return list(found.feedback)


def test_a_thumb_is_kept_at_once_and_is_there_after_a_reload(page: Page, chat: Chat) -> None:
    page.get_by_label("Good answer").click()
    expect(page.locator("#messages .note")).to_have_text("Thumbs up saved.")
    (said,) = kept(chat)
    assert (said.rating, said.edited, said.comment) == (1, None, None)
    page.reload()
    ready(page)
    expect(page.get_by_label("Rated good")).to_have_count(1)


def test_a_better_answer_and_a_comment_are_kept_and_sent_with_the_turn(page: Page, chat: Chat) -> None:
    page.get_by_label("Bad answer").click()
    expect(page.locator(".feedback label:nth-of-type(2) textarea")).to_have_value("The capital is **Sydney**.")
    page.fill(".feedback label:nth-of-type(2) textarea", "The capital is **Canberra**.")
    page.fill(".feedback label:nth-of-type(1) textarea", "Wrong city.")
    page.locator(".feedback .primary").click()
    expect(page.locator("#messages .note")).to_contain_text("Saved")
    expect(page.locator(".feedback")).to_have_count(0)
    newest = kept(chat)[-1]
    assert (newest.rating, newest.edited, newest.comment) == (-1, "The capital is **Canberra**.", "Wrong city.")
    conversation = chat.history.load(chat.history.list()[0].id)
    assert conversation
    assert newest.turn_id == conversation.messages[1].id
    assert recorder(chat).feedbacks[-1].comment == "Wrong city."


def test_the_answer_that_was_pressed_is_the_one_that_is_rated(page: Page, rated: Served, chat: Chat) -> None:
    rated.engine.answer, rated.engine.delay = LONG, STEP
    say(page, "long")
    expect(page.locator("#messages .answer").last).to_contain_text("w5")
    page.click("#stop")
    expect(page.locator("#messages")).to_contain_text("Stopped.")
    expect(page.get_by_label("Good answer")).to_have_count(2)
    page.get_by_label("Good answer").nth(1).click()
    expect(page.locator(".answer").nth(1).locator(".note")).to_contain_text("saved")
    page.get_by_label("Good answer").first.click()
    expect(page.locator(".answer").first.locator(".note")).to_contain_text("saved")
    conversation = chat.history.load(chat.history.list()[0].id)
    assert conversation
    assert [said.turn_id for said in kept(chat)] == [conversation.messages[3].id, conversation.messages[1].id]


def test_pressed_again_a_thumb_is_taken_back(page: Page, chat: Chat) -> None:
    page.get_by_label("Good answer").click()
    expect(page.locator(".feedback")).to_be_visible()
    page.get_by_label("Rated good").click()
    expect(page.locator(".feedback")).to_have_count(0)
    assert kept(chat)[-1].rating is None


def test_an_emptied_chat_shows_neither_panel_nor_thumbs(page: Page, rated: Served) -> None:
    page.get_by_label("Good answer").click()
    expect(page.locator(".feedback")).to_be_visible()
    page.click("#new")
    expect(page.locator(".feedback")).to_have_count(0)
    say(page, "Again?")
    expect(page.get_by_label("Good answer")).to_have_count(1)
    expect(page.get_by_label("Rated good")).to_have_count(0)


def test_with_the_log_off_nothing_is_sent_of_what_was_said_meanwhile(page: Page, chat: Chat) -> None:
    page.uncheck("#logged input")
    say(page, "Between us?")
    expect(page.get_by_label("Good answer")).to_have_count(2)
    page.check("#logged input")
    page.get_by_label("Good answer").nth(1).click()
    expect(page.locator("#messages .note")).to_contain_text("saved")
    assert kept(chat)[-1].rating == 1
    assert recorder(chat).feedbacks == []


def test_a_comment_too_long_to_be_sent_is_said_under_its_box_and_stays_in_it(page: Page, chat: Chat) -> None:
    page.get_by_label("Bad answer").click()
    long = "c" * (10_001)
    page.fill(".feedback label:nth-of-type(1) textarea", long)
    page.locator(".feedback .primary").click()
    expect(page.locator(".feedback")).to_contain_text("The comment has 10,001 characters, but at most 10,000 can be sent")
    expect(page.locator(".feedback label:nth-of-type(1) textarea")).to_have_value(long)
    page.fill(".feedback label:nth-of-type(1) textarea", "Wrong city.")
    page.locator(".feedback .primary").click()
    expect(page.locator("#messages .note")).to_contain_text("Saved")
    assert kept(chat)[-1].comment == "Wrong city."


def test_made_up_feedback_is_refused(rated: Served, page: Page) -> None:
    config = requests.get(f"{rated.url}/config").json()
    rate = next(each["id"] for each in config["dependencies"] if any(target[1] == "like" for target in each["targets"]))
    for data in (
        None,
        5,
        {},
        {"id": [0, 1]},
        {"id": "made up", "rating": 1},
        {"id": "made up", "rating": "1"},
        {"rating": 10**9},
    ):
        body = {"data": ["", True], "event_data": data, "fn_index": rate, "session_hash": "made-up"}
        answer = requests.post(f"{rated.url}/gradio_api/run/predict", json=body)
        assert answer.status_code in (200, 422)
        assert "saved" not in answer.text.lower().replace("nothing was saved", "")
