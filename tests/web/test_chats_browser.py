"""The list of conversations in a real browser, over a real history file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Route, expect

from qlora_chat.chat import Chat
from qlora_chat.history import HistoryStore
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.history.savable import SavableHistory
from qlora_chat.messages import Conversation, Message
from qlora_chat.web.chats import listing
from tests.fakes import ScriptedEngine, ScriptedRecorder, scripted_chat
from tests.history.conftest import add_turn, sqlite_history
from tests.web.driving import opened_at, say, settled, wait_for
from tests.web.serving import serving_chat

pytestmark = [pytest.mark.browser]

SCREENSHOT = os.environ.get("QLORA_CHAT_SCREENSHOT")


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chat]:
    with closing(sqlite_history(tmp_path_factory.mktemp("history") / "chats.db")) as store:
        yield replace(scripted_chat(ScriptedEngine("A scripted answer.")), history=store, recorder=ScriptedRecorder())


@pytest.fixture(scope="module")
def url(chat: Chat) -> Iterator[str]:
    with serving_chat(chat, history_on=True, logging_on=True) as url:
        yield url


@pytest.fixture
def context(context: BrowserContext, chat: Chat) -> BrowserContext:
    chat.erase([each.id for each in chat.history.list()])
    return context


def filled(chat: Chat, *titles: str) -> list[str]:
    return [add_turn(chat.history, Conversation(), title, f"An answer about {title}.").id for title in titles]


def titles(page: Page) -> Locator:
    return page.locator("[data-chat] .chat-title")


def menu(page: Page, title: str, item: str) -> None:
    row = page.locator("[data-chat]", has_text=title)
    row.locator(".chat-menu-button").click()
    page.locator(".chat-menu").get_by_role("button", name=item, exact=True).click()


def test_a_new_conversation_is_listed_and_named_in_address_and_title(chat: Chat, url: str, context: BrowserContext) -> None:
    page = opened_at(context, url)
    expect(page).to_have_title("QLoRA Chat")
    say(page, "Where is <b>the lighthouse</b>?")
    settled(page)
    expect(titles(page)).to_have_text(["Where is <b>the lighthouse</b>?"])
    expect(page).to_have_title("Where is <b>the lighthouse</b>? · QLoRA Chat")
    expect(page.locator(".chat-open[aria-current]")).to_have_count(1)
    address = page.url
    page.click("#new")
    expect(page).to_have_title("QLoRA Chat")
    page.go_back()
    expect(page.locator("#messages .question")).to_contain_text("lighthouse")
    other = opened_at(context, address)
    expect(other.locator("#messages .question")).to_contain_text("lighthouse")
    if SCREENSHOT:
        other.screenshot(path=SCREENSHOT)


def test_an_address_that_names_nothing_says_so(url: str, context: BrowserContext) -> None:
    page = opened_at(context, f"{url}/?c=nobody<b>")
    expect(page.locator("#notice")).to_contain_text("names no conversation that you can see here")
    say(page, "hello")
    expect(page.locator("#messages .answer")).to_contain_text("A scripted answer.")


def test_search_marks_what_it_found_and_arrow_keys_lead_through_the_list(chat: Chat, url: str, context: BrowserContext) -> None:
    filled(chat, "Lisbon in spring", "Prime numbers", "مرحبا")
    page = opened_at(context, url)
    expect(titles(page)).to_have_text(["مرحبا", "Prime numbers", "Lisbon in spring"])
    page.keyboard.press("Control+k")
    page.keyboard.type("answer prim")
    expect(titles(page)).to_have_text(["Prime numbers"])
    expect(page.locator(".chat-excerpt mark")).to_have_text(["answer", "Prime"])
    page.keyboard.press("Escape")
    expect(titles(page)).to_have_count(3)
    for key in ("ArrowDown", "ArrowDown", "End", "ArrowUp", "Enter"):
        page.keyboard.press(key)
    expect(page.locator("#messages .question")).to_have_text("Prime numbers")


def test_a_found_message_is_shown_where_it_stands(chat: Chat, url: str, context: BrowserContext) -> None:
    messages = [
        message
        for number in range(60)
        for message in (Message("user", f"question {number}"), Message("assistant", "needle" if number == 3 else "hay"))
    ]
    chat.history.save(Conversation(messages=tuple(messages)))
    page = opened_at(context, url)
    page.fill(".chat-search", "needle")
    expect(page.locator(".chat-excerpt mark")).to_have_text("needle")
    page.locator(".chat-open").click()
    expect(page.locator("#messages .found .body")).to_have_text("needle")
    expect(page.locator("#messages .found .body")).to_be_in_viewport()


def test_another_tab_follows_what_happens_to_a_conversation(chat: Chat, url: str, context: BrowserContext) -> None:
    filled(chat, "before")
    watching, acting = opened_at(context, url), opened_at(context, url)
    expect(titles(watching)).to_have_text(["before"])
    say(acting, "asked in another tab")
    expect(titles(watching)).to_have_text(["asked in another tab", "before"])
    menu(acting, "before", "Pin")
    expect(watching.locator(".chat-group")).to_have_text(["Pinned", "Today"])


def test_a_turn_brings_its_row_along(chat: Chat, url: str, context: BrowserContext) -> None:
    filled(chat, "older", "newer")
    page = opened_at(context, url)
    expect(titles(page)).to_have_count(2)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/page/chats" in request.url else None)
    page.locator("[data-chat]", has_text="older").locator(".chat-open").click()
    expect(page.locator("#messages .question")).to_have_text("older")
    say(page, "another question")
    expect(titles(page)).to_have_text(["older", "newer"])
    assert asked == [], "a list of thousands costs a turn no more than a list of two"


def test_the_list_is_drawn_though_its_script_comes_after_the_pages_value(chat: Chat, url: str, context: BrowserContext) -> None:
    filled(chat, "first")
    page, late = context.new_page(), list[Route]()
    page.route("**/static/chats.js", lambda route: late.append(route))
    page.goto(url)
    page.wait_for_function("sessionStorage.getItem('qlora-chat.conversation')")
    late[0].continue_()
    expect(titles(page)).to_have_text(["first"])


def test_one_menu_serves_every_row_and_gives_the_focus_back(chat: Chat, url: str, context: BrowserContext) -> None:
    first, _ = filled(chat, "first", "second")
    page = opened_at(context, url)
    shown = page.locator(".chat-menu:popover-open")
    buttons = page.locator(".chat-menu-button")
    buttons.nth(1).click()
    expect(shown).to_have_attribute("aria-label", "Menu of first")
    buttons.nth(0).click()
    expect(shown).to_have_attribute("aria-label", "Menu of second")
    page.keyboard.press("ArrowDown")
    expect(shown.get_by_role("button", name="Rename")).to_be_focused()
    page.keyboard.press("Escape")
    expect(shown).to_have_count(0)
    expect(buttons.nth(0)).to_be_focused()
    expect(page.locator("#chats")).to_have_class(re.compile("open"))
    buttons.nth(1).press("Enter")
    expect(shown.get_by_role("button", name="Pin")).to_be_focused()
    chat.history.change(first, title="renamed elsewhere")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(titles(page)).to_have_text(["second", "renamed elsewhere"])
    page.keyboard.press("Escape")
    expect(page.locator(".chat-open").nth(1)).to_be_focused()
    buttons.nth(1).click()
    page.mouse.click(800, 300)
    expect(shown).to_have_count(0)


def test_a_title_that_is_being_typed_survives_what_happens_elsewhere(chat: Chat, url: str, context: BrowserContext) -> None:
    filled(chat, "first")
    page = opened_at(context, url)
    page.locator(".chat-open").press("F2")
    page.keyboard.type("half a ti")
    other = opened_at(context, url)
    say(other, "asked elsewhere")
    settled(other)
    with page.expect_response("**/page/chats?*"):
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.keyboard.type("tle")
    expect(page.locator(".chat-edit input")).to_have_value("half a title")
    page.keyboard.press("Enter")
    expect(titles(page)).to_have_text(["asked elsewhere", "half a title"])
    expect(page.locator(".chat-open").nth(1)).to_be_focused()


def test_conversations_are_renamed_tagged_and_pinned_in_place(chat: Chat, url: str, context: BrowserContext) -> None:
    first, _ = filled(chat, "first", "second")
    page = opened_at(context, url)
    page.locator("[data-chat]", has_text="first").locator(".chat-open").focus()
    page.keyboard.press("F2")
    page.keyboard.type("My title")
    page.keyboard.press("Enter")
    expect(titles(page)).to_have_text(["second", "My title"])
    menu(page, "My title", "Tags…")
    page.keyboard.type("work, #travel")
    page.keyboard.press("Enter")
    expect(page.locator(".chat-tags")).to_have_text(["#work#travel"])
    menu(page, "My title", "Pin")
    expect(page.locator(".chat-group")).to_have_text(["Pinned", "Today"])
    expect(titles(page)).to_have_text(["My title", "second"])
    page.fill(".chat-search", "#travel")
    expect(titles(page)).to_have_text(["My title"])
    summary = chat.history.summary(first)
    assert summary
    assert (summary.title, set(summary.tags)) == ("My title", {"pinned", "work", "travel"})


def test_a_deleted_conversation_comes_back_whole_with_undo(chat: Chat, url: str, context: BrowserContext) -> None:
    (name,) = filled(chat, "precious")
    page = opened_at(context, f"{url}/?c={name}")
    expect(page.locator("#messages .question")).to_have_text("precious")
    menu(page, "precious", "Delete")
    expect(titles(page)).to_have_count(0)
    expect(page.locator("#messages .question")).to_have_count(0)
    assert chat.history.list() == []
    page.get_by_role("button", name="Undo").click()
    expect(titles(page)).to_have_text(["precious"])
    expect(page.locator("#messages .question")).to_have_text("precious")
    assert chat.history.hidden() == {}


def test_every_conversation_is_reached_by_scrolling(
    chat: Chat, url: str, context: BrowserContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "PAGE", 40)
    filled(chat, *(f"number {number}" for number in range(110)))
    page = opened_at(context, url)
    expect(titles(page).first).to_have_text("number 109")
    expect(page.locator("[data-chat]", has_text="number 0")).to_have_count(0)
    to_end = "() => { const each = document.querySelector('.chat-scroller'); each.scrollTop = each.scrollHeight; }"
    wait_for(page, lambda: (page.evaluate(to_end), titles(page).count() == 110)[1])
    last = page.locator("[data-chat]").last
    last.locator(".chat-open").click()
    expect(page.locator("#messages .question")).to_have_text("number 0")
    expect(page.locator("[data-chat]:has([aria-current])")).to_have_count(1)
    expect(titles(page)).to_have_count(110)
    expect(last).to_be_in_viewport()
    last.locator(".chat-open").press("F2")
    page.keyboard.type("renamed")
    page.keyboard.press("Enter")
    expect(titles(page).last).to_have_text("renamed")
    last.locator(".chat-open").press("Delete")
    expect(titles(page).last).to_have_text("number 1")
    page.get_by_role("button", name="Undo").click()
    expect(titles(page).last).to_have_text("renamed")
    expect(titles(page)).to_have_count(110)


def test_conversations_leave_and_come_back_as_files(chat: Chat, url: str, context: BrowserContext, tmp_path: Path) -> None:
    filled(chat, "exported")
    page = opened_at(context, url)
    with page.expect_download() as download:
        page.locator(".chat-foot select").select_option("json")
    path = tmp_path / "export.json"
    download.value.save_as(path)
    assert [each["title"] for each in json.loads(path.read_text())] == ["exported"]
    page.locator("input[type=file]").set_input_files(path)
    expect(page.locator(".toast")).to_contain_text("0 added\n1 was there already")
    chat.erase([each.id for each in chat.history.list()])
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"what": 1}\n')
    page.locator("input[type=file]").set_input_files([path, broken])
    expect(page.locator(".toast")).to_contain_text("export.json: 1 added")
    expect(page.locator(".toast")).to_contain_text("broken.jsonl: broken.jsonl: has 'what'")
    expect(titles(page)).to_have_text(["exported"])


def test_a_file_is_imported_where_it_is_dropped(chat: Chat, url: str, context: BrowserContext, tmp_path: Path) -> None:
    file = tmp_path / "dropped.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}\n')
    page = opened_at(context, url)
    session = context.new_cdp_session(page)
    dragged = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 130, "y": 400, "data": dragged})
        page.wait_for_timeout(100)
    expect(titles(page)).to_have_text(["hi"])
    expect(page.locator(".dropping")).to_have_count(0)


def test_on_a_phone_the_list_is_a_drawer_that_closes_when_one_is_chosen(chat: Chat, url: str, browser: Browser) -> None:
    chat.erase([each.id for each in chat.history.list()])
    filled(chat, "on a phone")
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = opened_at(context, url)
    drawer = page.locator("#chats")
    expect(drawer).to_have_attribute("inert", "")
    page.get_by_role("button", name="Conversations", exact=True).tap()
    page.locator(".chat-open").tap()
    expect(page.locator("#messages .question")).to_have_text("on a phone")
    expect(drawer).to_have_attribute("inert", "")
    context.close()


def test_without_a_history_the_page_says_what_is_lost_and_saves_after_a_click(context: BrowserContext, tmp_path: Path) -> None:
    file = tmp_path / "chats.db"
    store = cast(HistoryStore, SavableHistory(MemoryHistory(), file, sqlite_history))
    with closing(store), serving_chat(replace(scripted_chat(), history=store)) as url:
        page = opened_at(context, url)
        say(page, "before")
        settled(page)
        expect(page.locator("#not-saved")).to_contain_text("gone when the program that serves this page ends")
        assert not file.exists()
        page.get_by_role("button", name="Save from now on").click()
        expect(page.locator(".toast")).to_contain_text("from now on. Conversations saved already: 1.")
        expect(page.locator("#not-saved")).to_have_count(0)
        say(page, "after")
        settled(page, 2)
        page.close()
    with closing(sqlite_history(file)) as saved:
        assert [each.turns for each in saved.list()] == [4]
