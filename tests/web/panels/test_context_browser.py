"""The window's use under the message box, the turns that go, pins, and the line where the model's memory begins."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.fakes import ScriptedEngine
from tests.web.driving import opened, say, settled, wait_for
from tests.web.serving import Served

pytestmark = pytest.mark.browser
QUESTION = "question number {}"


@pytest.fixture
def small(engine: ScriptedEngine) -> Iterator[ScriptedEngine]:
    """An engine whose window holds six exchanges."""
    info, engine.answer = engine.info, "An answer."
    engine.info = replace(info, window=500)
    yield engine
    engine.info = info


def ask(page: Page, *numbers: int) -> None:
    for number in numbers:
        say(page, QUESTION.format(number))
        expect(page.locator("#messages .answer")).to_have_count(number + 1)
        settled(page)


def test_the_bar_counts_what_is_typed(context: BrowserContext, server: Served, small: ScriptedEngine) -> None:
    page = opened(context, server)
    page.fill("#box textarea", "hello")
    bar = page.locator(".context-bar")
    expect(bar).to_have_text(re.compile(r"^\d+ \+ 5 of 500$"))
    shown = [int(each) for each in re.findall(r"\d+", bar.inner_text())]
    page.press("#box textarea", "Enter")
    settled(page)
    assert len(small.streams[-1].prompt.ids) == shown[0] + shown[1]
    spoken = len(small.streams[-1].prompt.ids) + len("An answer.")  # the answer is part of the next prompt
    wait_for(page, lambda: int(re.findall(r"\d+", bar.inner_text())[0]) >= spoken)
    expect(bar).to_have_text(re.compile(r"^\d+ of 500$"))
    page.fill("#box textarea", "x" * 2000)
    bar.click()
    expect(page.locator("#context-panel")).to_contain_text("This message is too long")
    page.keyboard.press("Escape")
    expect(page.locator("#context-panel")).to_be_hidden()
    expect(bar).to_be_focused()


def test_a_question_is_pinned_where_it_stands(context: BrowserContext, server: Served, small: ScriptedEngine) -> None:
    page = opened(context, server)
    ask(page, 0)
    pin = page.get_by_role("button", name="Keep in the model's memory")
    pin.click()
    expect(pin).to_have_attribute("aria-pressed", "true")
    page.locator(".context-bar").click()
    expect(page.locator("#context-panel")).to_contain_text("Always seen")
    page.keyboard.press("Escape")
    pin.click()
    expect(pin).to_have_attribute("aria-pressed", "false")


def test_turns_that_go_are_listed_and_a_pinned_one_stays_after_a_reload(
    context: BrowserContext, server: Served, small: ScriptedEngine
) -> None:
    page = opened(context, server)
    ask(page, *range(9))
    line = page.locator("#messages [data-memory]")
    expect(line).to_have_count(1)
    assert "memory begins here" in (line.get_attribute("data-memory") or "")
    first_seen = line.locator(".body").inner_text()
    line.scroll_into_view_if_needed()  # what is out of sight is not laid out
    above = "each => each.querySelector('.body').getBoundingClientRect().top - each.getBoundingClientRect().top"
    wait_for(page, lambda: line.evaluate(above) > 20)  # the line is above the question, not beside it
    assert first_seen in small.streams[-1].prompt.text
    page.locator(".context-bar").click()
    page.get_by_role("button", name=f"Keep {QUESTION.format(0)}").click()
    expect(page.locator("#context-panel")).to_contain_text("Always seen")
    page.reload()
    page.locator(".context-bar").click()
    expect(page.get_by_role("button", name=f"Let go {QUESTION.format(0)}")).to_be_visible()
    page.locator(".context-bar").click()
    ask(page, 9)
    assert QUESTION.format(0) in small.streams[-1].prompt.text
    assert QUESTION.format(1) not in small.streams[-1].prompt.text
