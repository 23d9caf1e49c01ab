"""The page's controls in a real browser, over an engine that follows a script, so that times can be told exactly."""

from __future__ import annotations

import re
import time

import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from qlora_chat.web.parts import MAX_CHARACTERS
from tests.fakes import ScriptedEngine
from tests.web.driving import (
    LONG,
    STEP,
    answers,
    begin_long_answer,
    open_options,
    opened,
    ready,
    say,
    set_slider,
    settled,
    wait_for,
)
from tests.web.serving import Served

pytestmark = [pytest.mark.browser]


def test_an_answer_grows_while_it_is_written(page: Page, engine: ScriptedEngine) -> None:
    begin_long_answer(page, engine)
    for _ in range(4):
        length = len(answers(page)[0])
        wait_for(page, lambda before=length: len(answers(page)[0]) > before)
    assert engine.streams[0].ended_at is None
    page.click("#stop")


def test_the_first_words_are_visible_before_the_next_are_made(page: Page, engine: ScriptedEngine) -> None:
    """How soon is measured by bench/serving/first_text.py."""
    engine.answer, engine.pauses_after = "First words and more", 2
    say(page, "question")
    expect(page.locator("#messages .answer")).to_contain_text("First words")
    assert engine.streams[0].ended_at is None
    engine.go_on.set()
    expect(page.locator("#messages .answer")).to_contain_text("First words and more")


def test_enter_sends_and_shift_enter_breaks_the_line(page: Page, engine: ScriptedEngine) -> None:
    page.locator("#box textarea").press_sequentially("one")
    page.press("#box textarea", "Shift+Enter")
    page.locator("#box textarea").press_sequentially("two")
    assert engine.streams == []
    page.press("#box textarea", "Enter")
    settled(page)
    assert "one\ntwo" in engine.streams[0].prompt.text
    expect(page.locator("#box textarea")).to_have_value("")
    expect(page.locator("#box textarea")).to_be_focused()


def test_what_is_too_long_to_be_sent_is_said_under_the_box_and_stays_in_it(page: Page, engine: ScriptedEngine) -> None:
    said = "has 200,001 characters, but at most 200,000 can be sent"
    long = "x" * (MAX_CHARACTERS["box"] + 1)
    say(page, long)
    expect(page.locator("#ask")).to_contain_text(f"Your message {said}")
    expect(page.locator("#box textarea")).to_have_value(long)
    assert engine.streams == []
    say(page, "shorter")
    expect(page.locator("#messages .answer")).to_have_count(1)
    expect(page.locator("#ask")).not_to_contain_text(said)


def test_a_system_text_too_long_to_be_sent_does_not_keep_the_page_from_being_reloaded(page: Page) -> None:
    open_options(page)
    for text, remembered in (("Be brief.", "Be brief."), ("s" * (MAX_CHARACTERS["memory"] + 1), "")):
        page.fill("#system textarea", text)
        stored = "JSON.parse(sessionStorage.getItem('qlora-chat.tab'))?.system"
        page.wait_for_function(f"{stored} === {remembered!r}")
    page.reload()
    ready(page)
    say(page, "hi")
    expect(page.locator("#messages .answer")).to_have_count(1)


def test_stop_ends_the_computation_and_keeps_the_part(page: Page, engine: ScriptedEngine) -> None:
    stream = begin_long_answer(page, engine)
    page.click("#stop")
    expect(page.locator("#messages .answer").last).to_contain_text("Stopped")
    assert stream.reason == "cancelled"
    assert answers(page)[0].startswith("w0 w1")
    settled(page)


def test_a_slider_moved_in_the_middle_of_an_answer_acts_on_it(page: Page, engine: ScriptedEngine) -> None:
    open_options(page)
    stream = begin_long_answer(page, engine)
    set_slider(page, "temperature", "0")
    wait_for(page, lambda: stream.seen[-1].temperature == 0.0)
    assert stream.seen[0].temperature == 0.7
    page.click("#stop")
    settled(page)
    say(page, "and now")
    wait_for(page, lambda: len(engine.streams) == 2 and engine.streams[1].seen)
    assert engine.streams[1].seen[0].temperature == 0.0


NOTE_WHAT_APPEARS_AFTER_CLEAR = """() => {
    window.appeared = [];
    let cleared = false;
    const text = () => [...document.querySelectorAll('#messages .body')].map(e => e.innerText).join();
    setInterval(() => {
        if (!text()) cleared = true;
        else if (cleared) window.appeared.push(text());
    }, 3);
}"""


def test_clear_in_the_middle_of_an_answer_leaves_nothing(page: Page, engine: ScriptedEngine) -> None:
    stream = begin_long_answer(page, engine)
    before = page.evaluate("sessionStorage.getItem('qlora-chat.conversation')")
    page.evaluate(NOTE_WHAT_APPEARS_AFTER_CLEAR)
    page.click("#new")
    expect(page.locator("#messages .answer")).to_have_count(0)
    wait_for(page, lambda: stream.reason == "cancelled")
    page.wait_for_timeout(300)
    assert page.evaluate("window.appeared") == []
    assert page.evaluate("sessionStorage.getItem('qlora-chat.conversation')") != before
    engine.answer, engine.delay = "Fresh.", 0.0
    say(page, "hello")
    expect(page.locator("#messages .answer")).to_have_text(re.compile("Fresh"))
    assert "go on" not in engine.streams[-1].prompt.text


def test_clear_wins_every_race_with_the_answer(page: Page, engine: ScriptedEngine) -> None:
    for turn in range(3):
        begin_long_answer(page, engine)
        page.wait_for_timeout(20 * turn)
        page.click("#new")
        expect(page.locator("#messages .answer")).to_have_count(0)
        page.wait_for_timeout(150)
        expect(page.locator("#messages .answer")).to_have_count(0)


def test_what_is_sent_before_a_new_conversation_has_come_belongs_to_it(page: Page, engine: ScriptedEngine) -> None:
    say(page, "in the old one")
    settled(page)
    held: list[Route] = []
    page.route("**/queue/join*", lambda route: route.continue_() if held else held.append(route))
    page.click("#new")
    wait_for(page, lambda: held)
    say(page, "in the new one")
    page.wait_for_timeout(200)
    held[0].continue_()
    expect(page.locator("#messages .question")).to_have_text(["in the new one"])
    settled(page)
    assert "in the old one" not in engine.streams[-1].prompt.text


def test_a_click_on_new_that_a_proxy_refuses_holds_up_no_message(page: Page, engine: ScriptedEngine) -> None:
    say(page, "before")
    settled(page)
    refused: list[Route] = []

    def refuse(route: Route) -> None:
        refused.append(route)
        route.fulfill(status=502, json={"error": "no server behind it"})

    page.route("**/queue/join*", refuse, times=1)
    page.click("#new")
    wait_for(page, lambda: refused)
    say(page, "afterwards")
    expect(page.locator("#messages .question")).to_have_text(["before", "afterwards"])
    settled(page)


def test_a_reload_restores_the_conversation_and_the_sliders(page: Page, engine: ScriptedEngine) -> None:
    say(page, "remember me")
    expect(page.locator("#messages .answer")).to_contain_text("scripted answer")
    open_options(page)
    set_slider(page, "temperature", "1.3")
    set_slider(page, "top_k", "40")
    page.fill("#system textarea", "Be kind.")
    page.wait_for_function("JSON.parse(localStorage.getItem('qlora-chat.sampling') || '{}').top_k === '40'")
    page.reload()
    ready(page)
    expect(page.locator("#messages .question")).to_contain_text("remember me")
    expect(page.locator("#messages .answer")).to_contain_text("scripted answer")
    open_options(page)
    expect(page.locator("#temperature")).to_have_value("1.3")
    expect(page.locator("#system textarea")).to_have_value("Be kind.")
    say(page, "and again")
    settled(page, 2)
    assert "remember me" in engine.streams[-1].prompt.text
    assert (engine.streams[-1].sampling.temperature, engine.streams[-1].sampling.top_k) == (1.3, 40)


def test_a_reload_in_the_middle_of_an_answer_keeps_the_part(page: Page, engine: ScriptedEngine) -> None:
    stream = begin_long_answer(page, engine)
    page.reload()
    expect(page.locator("#messages .answer")).to_contain_text("Stopped")
    assert stream.reason == "cancelled"
    assert answers(page)[0].startswith("w0 w1")


@pytest.mark.parametrize("step", [STEP, 600.0], ids=["streaming", "before the first token"])
def test_a_closed_tab_ends_the_computation(page: Page, engine: ScriptedEngine, step: float) -> None:
    engine.answer, engine.delay = LONG, step
    say(page, "go on")
    expect(page.locator("#messages .question")).to_have_count(1)
    wait_for(page, lambda: engine.streams and (step > 1 or engine.streams[0].seen))
    page.close()
    stream, until = engine.streams[0], time.monotonic() + 60
    while not stream.ended_at:
        assert time.monotonic() < until, "still computing"
        time.sleep(0.005)
    assert stream.reason == "cancelled"


def test_two_tabs_are_independent(page: Page, context: BrowserContext, server: Served, engine: ScriptedEngine) -> None:
    begin_long_answer(page, engine, "first tab")
    engine.answer, engine.delay = "Second answer.", 0.0
    other = opened(context, server)
    say(other, "second tab")
    expect(other.locator("#messages .answer")).to_contain_text("Second answer.")
    expect(other.locator("#messages .question")).to_have_count(1)
    assert engine.streams[0].reason is None, "the first tab's answer goes on"
    page.bring_to_front()  # a tab in the background draws no frames, and a click waits for some
    page.click("#stop")
    assert "Second" not in page.inner_text("#messages")


def test_an_impatient_user_does_not_get_two_answers(page: Page, engine: ScriptedEngine) -> None:
    engine.answer, engine.delay = LONG, STEP
    page.fill("#box textarea", "hurry")
    page.dblclick("#send")
    expect(page.locator("#box textarea")).to_have_value("")
    page.locator("#box textarea").press_sequentially("next thought")
    page.press("#box textarea", "Enter")
    wait_for(page, lambda: engine.streams)
    page.wait_for_timeout(300)
    assert len(engine.streams) == 1
    expect(page.locator("#box textarea")).to_have_value("next thought")
    page.click("#stop")


def act(page: Page, article: str, label: str, nth: int = 0) -> None:
    """Press a button under a message."""
    message = page.locator(f"#messages .{article}").nth(nth)
    message.hover()
    message.get_by_role("button", name=label, exact=True).click()


def test_any_answer_is_retried_and_its_versions_are_switched_and_outlive_a_reload(page: Page, engine: ScriptedEngine) -> None:
    say(page, "tell me")
    settled(page)
    say(page, "and more")
    settled(page, 2)
    engine.answer = "Another answer."
    act(page, "answer", "Retry")
    expect(page.locator("#messages .answer")).to_have_count(1)
    expect(page.locator("#messages .answer")).to_contain_text("Another answer.")
    settled(page)
    expect(page.locator("#messages .answer .count")).to_have_text("2/2")
    act(page, "answer", "Previous version")
    expect(page.locator("#messages .answer")).to_have_count(2)
    expect(page.locator("#messages .answer .count")).to_have_text("1/2")
    assert page.evaluate("document.activeElement.dataset.action") == "previous", "the focus is where it was"
    page.reload()
    expect(page.locator("#messages .answer .count")).to_have_text("1/2")


def test_an_edited_question_is_answered_anew_and_the_old_branch_stays(page: Page, engine: ScriptedEngine) -> None:
    say(page, "What is 2 + 3?")
    settled(page)
    act(page, "question", "Edit")
    page.get_by_label("Edit your message").fill("What is **20** + 3?")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#messages .question .body")).to_have_text("What is **20** + 3?")
    settled(page)
    assert "What is **20** + 3?" in engine.streams[-1].prompt.text
    expect(page.locator("#messages .question .count")).to_have_text("2/2")
    act(page, "question", "Previous version")
    expect(page.locator("#messages .question .body")).to_have_text("What is 2 + 3?")


def test_an_edited_answer_is_what_the_model_goes_on_from(page: Page, engine: ScriptedEngine) -> None:
    say(page, "Capital of Australia?")
    settled(page)
    act(page, "answer", "Edit")
    page.get_by_label("Edit the answer").fill("Canberra.")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#messages .answer .body")).to_have_text("Canberra.")
    say(page, "Sure?")
    settled(page, 2)
    assert "Canberra." in engine.streams[-1].prompt.text
    assert "scripted answer" not in engine.streams[-1].prompt.text


def test_the_details_of_an_answer_and_the_settings_it_was_made_with_are_there_after_a_reload(page: Page) -> None:
    say(page, "count")
    settled(page)
    page.reload()
    settled(page)
    expect(page.locator("#messages .facts")).to_contain_text(re.compile(r"scripted-adapter · 5 tokens · .* stop"))
    act(page, "answer", "Details")
    for row in ("Model\nscripted", "Base\nscripted-base", "Finish reason\nstop", "Temperature\n0.7", "Seed"):
        expect(page.locator("#messages .details")).to_contain_text(re.compile(row.replace("\n", r"\s*")))


def test_an_engine_failure_is_shown_and_the_question_returned(page: Page, engine: ScriptedEngine) -> None:
    engine.fails_after = 0
    say(page, "my careful question")
    expect(page.locator("#notice [role=alert]")).to_have_text("the script says that generation fails")
    expect(page.locator("#box textarea")).to_have_value("my careful question")
    settled(page, 0)
    engine.fails_after = None
    page.press("#box textarea", "Enter")
    expect(page.locator("#messages .answer")).to_contain_text("scripted answer")
    expect(page.locator("#messages .question")).to_have_count(1)
    expect(page.locator("#notice [role=alert]")).to_have_count(0)


def test_a_message_too_long_is_an_error_with_both_numbers_and_stays_in_the_box(page: Page, engine: ScriptedEngine) -> None:
    text = "x" * 5000
    say(page, text)
    expect(page.locator("#notice [role=alert]")).to_contain_text(re.compile(r"5,0\d\d tokens.*3,072 fit"))
    expect(page.locator("#box textarea")).to_have_value(text)
    expect(page.locator("#messages article")).to_have_count(0)
    assert engine.streams == []


def test_turns_that_no_longer_fit_are_announced(page: Page, engine: ScriptedEngine) -> None:
    say(page, "a" * 2000)
    expect(page.locator("#messages .answer")).to_have_count(1)
    settled(page)
    say(page, "b" * 2000)
    expect(page.locator("#notice")).to_contain_text("oldest exchange no longer fits")


def test_the_status_line_tells_the_speed_and_the_bar_the_context(page: Page, engine: ScriptedEngine) -> None:
    engine.answer, engine.delay = "one two three four", 0.02
    expect(page.locator("#status")).to_contain_text("scripted · fp32 · cpu")
    say(page, "count")
    expect(page.locator("#status")).to_have_text(re.compile(r"\d+ tokens/s · first token 20 ms\s*$"))
    expect(page.locator(".context-bar")).to_have_text(re.compile(r"^\d+ of 4,096$"))
