"""The page stands still: box, button and newest line stay in the window, and what is read stays where it is."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator

import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from qlora_chat.chat import Chat
from qlora_chat.messages import Conversation, Message
from tests.fakes import ScriptedEngine, scripted_chat
from tests.web.driving import LONG, STEP, answers, opened_at, ready, say, set_slider, settled, wait_for
from tests.web.serving import serving_chat

pytestmark = pytest.mark.browser

TURNS = 60
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
NEWEST_IS_VISIBLE = """() => {
    const article = document.querySelector('#messages .list').lastElementChild.getBoundingClientRect();
    const window = document.querySelector('#messages .scroller').getBoundingClientRect();
    return article.bottom > window.top && article.bottom <= window.bottom + 1;
}"""


@pytest.fixture(scope="module")
def chat() -> Chat:
    return scripted_chat(ScriptedEngine())


@pytest.fixture(scope="module")
def url(chat: Chat) -> Iterator[str]:
    with serving_chat(chat) as url:
        yield url


@pytest.fixture
def engine(chat: Chat) -> ScriptedEngine:
    assert isinstance(chat.engine, ScriptedEngine)
    chat.engine.answer, chat.engine.delay, chat.engine.pauses_after = "This is a scripted answer.", 0.0, None
    return chat.engine


def opened_on_many_turns(context: BrowserContext, url: str, chat: Chat, size: str) -> Page:
    """A page that shows a conversation of TURNS turns."""
    turns = [(f"Question {index}", f"Answer {index}. " + "words " * 30) for index in range(TURNS)]
    messages = [
        message
        for question, answer in turns
        for message in (Message("user", question), Message("assistant", answer, finish_reason="stop"))
    ]
    saved = chat.history.save(Conversation(messages=tuple(messages)))
    width, height = SIZES[size]
    page = context.new_page()
    page.set_viewport_size({"width": width, "height": height})
    page.add_init_script(f"sessionStorage['qlora-chat.conversation'] ??= JSON.stringify('{saved.id} {saved.head}')")
    page.goto(url)
    ready(page)
    expect(page.locator("#messages .answer").last).to_contain_text(f"Answer {TURNS - 1}.")
    return page


def expect_all_in_the_window(page: Page) -> None:
    expect(page.locator("#box textarea")).to_be_in_viewport(ratio=1)
    expect(page.locator("#send:visible, #stop:visible")).to_be_in_viewport(ratio=1)
    page.wait_for_function(NEWEST_IS_VISIBLE)
    assert page.evaluate("[scrollX, scrollY, document.documentElement.scrollHeight <= innerHeight]") == [0, 0, True]


@pytest.mark.parametrize("size", SIZES)
def test_box_button_and_newest_line_stay_in_the_window(
    context: BrowserContext, url: str, chat: Chat, engine: ScriptedEngine, size: str
) -> None:
    page = opened_on_many_turns(context, url, chat, size)
    expect_all_in_the_window(page)
    expect(page.locator("#messages .question")).to_have_count(TURNS)  # older ones are drawn afterwards
    expect_all_in_the_window(page)
    engine.answer, engine.delay = LONG, STEP
    say(page, "go on")
    wait_for(page, lambda: "w60" in answers(page)[-1])
    expect_all_in_the_window(page)
    page.keyboard.press("Escape")
    settled(page)
    expect(page.locator("#messages .answer").last).to_contain_text("Stopped.")
    expect_all_in_the_window(page)
    expect(page.locator("#box textarea")).to_be_focused()
    page.reload()
    expect(page.locator("#messages .answer").last).to_contain_text("Stopped.")
    expect_all_in_the_window(page)


def test_a_reader_who_scrolls_up_is_left_alone_and_offered_the_newest(
    context: BrowserContext, url: str, chat: Chat, engine: ScriptedEngine
) -> None:
    page = opened_on_many_turns(context, url, chat, "desktop")
    expect(page.locator("#messages .question")).to_have_count(TURNS)
    engine.answer, engine.delay = LONG, STEP
    say(page, "go on")
    wait_for(page, lambda: "w60" in answers(page)[-1])
    page.hover("#messages .scroller")
    page.mouse.wheel(0, -1500)
    expect(page.locator("#messages .newest")).to_be_visible()
    page.wait_for_function(  # the wheel's own movement has ended
        "() => window.reached === (window.reached = document.querySelector('.scroller').scrollTop)",
        polling=300,
    )
    top = page.evaluate("document.querySelector('.scroller').scrollTop")
    length = len(answers(page)[-1])
    wait_for(page, lambda: len(answers(page)[-1]) > length + 100)
    assert page.evaluate("document.querySelector('.scroller').scrollTop") == top
    page.click("#messages .newest")
    expect_all_in_the_window(page)
    page.click("#stop")
    settled(page)


def test_a_waiting_bubble_comes_at_once_before_the_server_has_answered(
    context: BrowserContext, url: str, engine: ScriptedEngine
) -> None:
    page = opened_at(context, url)
    engine.pauses_after = 0
    held: list[Route] = []
    page.route("**/queue/join*", lambda route: held.append(route))
    say(page, "a long paste")
    wait_for(page, lambda: held)
    for begun in (False, True):
        expect(page.locator("#messages .live.waiting")).to_be_visible()
        expect(page.locator("#messages .question .body")).to_have_text("a long paste")
        if not begun:
            held[0].continue_()
            expect(page.locator("#stop")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#messages .end")).to_contain_text("Stopped.")


def test_a_cut_answer_says_why_and_goes_on_and_marks_where_settings_changed(
    context: BrowserContext, url: str, engine: ScriptedEngine
) -> None:
    page = opened_at(context, url)
    page.get_by_role("button", name="Settings", exact=True).click()
    engine.answer, engine.pauses_after = LONG, 5
    say(page, "go on")
    expect(page.locator("#messages .live")).to_contain_text("w4")
    set_slider(page, "temperature", "1.5")
    wait_for(page, lambda: engine.streams[-1].sampling.temperature == 1.5)
    engine.streams[-1].delay = STEP
    engine.go_on.set()
    expect(page.locator("#messages .live")).to_contain_text("w8")
    engine.answer, engine.pauses_after, engine.go_on = " and so on.", None, threading.Event()
    page.click("#stop")
    expect(page.locator("#messages .end")).to_contain_text("Stopped.")
    expect(page.locator("#messages .answer .mark")).to_have_text("Temperature 0.7 → 1.5")
    expect(page.locator("#messages .answer .body")).to_contain_text(re.compile(r"w4\s*Temperature 0.7 → 1.5\s*w5"))
    page.get_by_role("button", name="Continue").click()
    expect(page.locator("#messages .answer .count")).to_have_text("2/2")
    expect(page.locator("#messages .answer .mark")).to_have_text("continued")
    expect(page.locator("#messages .answer .body")).to_contain_text(re.compile(r"w\d+\s*continued\s*and so on\."))
    page.get_by_role("button", name="Previous version").click()
    expect(page.locator("#messages .answer .count")).to_have_text("1/2")


def test_copy_gives_the_exact_text_of_questions_and_answers(context: BrowserContext, url: str, engine: ScriptedEngine) -> None:
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = opened_at(context, url)
    engine.answer = "Use `<b>` & **$x^2$**:\n\n| a | b |\n|:--|--:|\n| 1 | 2 |"
    say(page, "What is <b>?\n  indented & \\(a\\)")
    settled(page)
    for article, text in (("question", "What is <b>?\n  indented & \\(a\\)"), ("answer", engine.answer)):
        message = page.locator(f"#messages .{article}")
        message.hover()
        message.get_by_role("button", name="Copy", exact=True).click()
        wait_for(page, lambda text=text: page.evaluate("navigator.clipboard.readText()") == text)


def test_a_finished_answer_is_announced_once(context: BrowserContext, url: str, chat: Chat, engine: ScriptedEngine) -> None:
    page = opened_at(context, url)
    page.wait_for_selector("#messages [aria-live]", state="attached")
    page.evaluate("""() => {
        window.announced = [];
        const region = document.querySelector('#messages [aria-live]');
        new MutationObserver(() => window.announced.push(region.textContent)).observe(region, {childList: true});
    }""")
    say(page, "hello")
    settled(page)
    assert page.evaluate("window.announced") == ["This is a scripted answer."]
