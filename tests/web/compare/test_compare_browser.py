"""The compare view in a real browser: columns, streaming, blind votes, the answer to go on with; mouse, touch and keyboard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from qlora_chat.chat import Chat
from qlora_chat.engines import AnsweredBy
from qlora_chat.prompt import Prompt
from qlora_chat.settings import ModelSettings
from tests.fakes import SCRIPTED_INFO, ScriptedEngine, ScriptedSwitch, scripted_chat
from tests.web.driving import LONG, STEP, answers, opened_at, say, settled
from tests.web.serving import serving_chat
from tests.web.test_accessibility_browser import findings

pytestmark = pytest.mark.browser

PLAIN, PIRATE = "It is **plain**.", 'Arr, <img src="x" onerror="alert(1)"> matey.'


class Compared:
    """A page over a base with two adapters, each of which has words of its own."""

    def __init__(self, url: str, chat: Chat, engine: ScriptedEngine) -> None:
        self.url, self.chat, self.engine = url, chat, engine


@pytest.fixture(scope="module")
def site() -> Iterator[Compared]:
    engine = ScriptedEngine(info=replace(SCRIPTED_INFO, adapter=None, adapters=("guanaco", "pirate")))
    engine.answered_by = AnsweredBy
    chat = scripted_chat(engine)
    with serving_chat(chat, history_on=True) as url:
        yield Compared(url, chat, engine)


@pytest.fixture
def compared(site: Compared) -> Compared:
    def answer(_: Prompt) -> str:
        return PIRATE if site.engine.adapters_asked[-1] == "pirate" else PLAIN

    site.engine.answer, site.engine.delay, site.engine.answered_by = answer, 0.0, AnsweredBy
    return site


def open_compare(page: Page) -> Locator:
    page.get_by_role("button", name="Compare", exact=True).first.click()
    view = page.get_by_role("dialog", name="Compare")
    expect(view.get_by_label("Question")).to_be_focused()
    return view


def reopen_compare(page: Page) -> Locator:
    """The view of a reloaded page, with the comparison from before."""
    page.reload()
    page.locator("#compare dialog").wait_for(state="attached")
    page.get_by_role("button", name="Compare", exact=True).first.click()
    view = page.get_by_role("dialog", name="Compare")
    expect(view.get_by_role("button", name="A is the best")).to_be_visible()
    return view


def choose(view: Locator, *models: str) -> None:
    for column, model in zip(view.locator("fieldset:enabled").all(), models, strict=True):
        column.get_by_label("Model").select_option(model)


def test_base_and_adapter_blind_then_a_vote_and_the_answer_to_go_on_with(context: BrowserContext, compared: Compared) -> None:
    page = opened_at(context, compared.url)
    say(page, "Hello?")
    settled(page)
    view = open_compare(page)
    expect(view).to_contain_text("The answers see the conversation so far.")
    choose(view, "scripted", "pirate")
    view.get_by_label("Question").fill("What is it?")
    view.get_by_role("button", name="Compare", exact=True).click()
    expect(view.get_by_role("button", name="A is the best")).to_be_visible()
    view = reopen_compare(page)
    for hidden in ("pirate", "scripted", "tokens/s"):
        expect(view.locator(".compare-result")).not_to_contain_text(hidden)
    expect(view.locator("img")).to_have_count(0)
    best = "A" if "Arr" in view.get_by_label("Answer in column A").inner_text() else "B"
    view.get_by_role("button", name=f"{best} is the best").click()
    expect(view.get_by_label(f"Answer in column {best}")).to_contain_text("pirate")
    expect(view).to_contain_text("scripted (no adapter)")
    expect(view).to_contain_text("Your vote is saved.")
    expect(view).to_contain_text("Votes so far: 1, of them blind: 1")

    view.get_by_label(f"Answer in column {best}").get_by_role("button", name="Use this answer").click()
    expect(view).to_be_hidden()
    expect(page.locator("#messages .answer .body").last).to_contain_text("Arr")
    expect(page.locator("#messages .answer .count").last).to_have_text("2/2" if best == "B" else "1/2")
    expect(page.locator("#adapter input")).to_have_value("pirate")
    say(page, "And now?")
    settled(page, 3)
    assert len(answers(page)) == 3
    (vote,) = compared.chat.history.votes()
    assert (vote.blind, [each.name for each in vote.answers if each.turn_id == vote.chosen]) == (True, ["pirate"])


def test_the_name_is_that_of_what_answered_and_not_of_what_was_asked(context: BrowserContext, compared: Compared) -> None:
    compared.engine.answered_by = lambda asked: AnsweredBy("guanaco")
    view = open_compare(opened_at(context, compared.url))
    choose(view, "scripted", "pirate")
    view.get_by_label("Temperature").nth(1).evaluate("each => { each.closest('details').open = true; each.value = '0.25' }")
    view.get_by_label("Hide the names until I have voted").uncheck()
    view.get_by_label("Question").fill("Who is it?")
    view.get_by_label("Question").press("Enter")
    expect(view.get_by_label("Answer in column A")).to_contain_text("guanaco, Temperature 0.7")
    expect(view.get_by_label("Answer in column B")).to_contain_text("guanaco, Temperature 0.25")


def test_an_answer_without_a_word_loses_and_is_no_mystery(context: BrowserContext, compared: Compared) -> None:
    compared.engine.answer = lambda _: "" if compared.engine.adapters_asked[-1] == "pirate" else PLAIN
    view = open_compare(opened_at(context, compared.url))
    choose(view, "scripted", "pirate")
    view.get_by_label("Question").fill("Anything?")
    view.get_by_role("button", name="Compare", exact=True).click()
    expect(view.get_by_text("Ended without a word.")).to_have_count(1)
    expect(view.get_by_role("button", name="is the best")).to_have_count(1)
    view.get_by_role("button", name="is the best").click()
    expect(view).to_contain_text("Your vote is saved.")
    expect(view.get_by_role("button", name="Use this answer")).to_have_count(1)


def test_long_answers_grow_side_by_side_until_escape_stops_all(context: BrowserContext, compared: Compared) -> None:
    compared.engine.answer, compared.engine.delay = LONG, STEP
    page = opened_at(context, compared.url)
    view = open_compare(page)
    view.get_by_role("button", name="Add a column").click()
    choose(view, "scripted", "guanaco", "pirate")
    view.get_by_label("Question").fill("Go on")
    view.get_by_role("button", name="Compare", exact=True).click()
    for name in "ABC":
        expect(view.get_by_label(f"Answer in column {name}")).to_contain_text("w40")
    assert len([each for each in compared.engine.streams if each.reason is None]) == 3, "at the same time"
    page.keyboard.press("Escape")
    expect(view.get_by_text("Stopped.")).to_have_count(3)
    expect(view).to_be_visible()
    texts = [view.get_by_label(f"Answer in column {name}").locator(".body").inner_text().split() for name in "ABC"]
    assert all(text == LONG.split(" ")[: len(text)] for text in texts), "nothing is missing"
    page.keyboard.press("Escape")
    expect(view).to_be_hidden()
    expect(page.get_by_role("button", name="Compare", exact=True).first).to_be_focused()


def test_what_cannot_be_compared_is_said_next_to_the_button(context: BrowserContext, compared: Compared) -> None:
    view = open_compare(opened_at(context, compared.url))
    choose(view, "pirate", "pirate")
    view.get_by_label("Question").fill("Same?")
    view.get_by_role("button", name="Compare", exact=True).click()
    expect(view.get_by_role("alert")).to_have_text("A and B are the same: give one of them another model or other settings.")


def test_on_a_phone_the_columns_are_swiped_and_everything_is_within_reach(browser: Browser, compared: Compared) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = opened_at(context, compared.url)
    box = page.get_by_role("button", name="Settings", exact=True).bounding_box()
    assert box
    assert box["x"] + box["width"] <= 390, "the head still has room for all its buttons"
    page.get_by_role("button", name="Compare", exact=True).first.tap()
    view = page.get_by_role("dialog", name="Compare")
    view.get_by_label("Question").fill("What is it?")
    view.get_by_role("button", name="Compare", exact=True).tap()
    button = view.get_by_role("button", name="B is the best")
    expect(button).to_be_visible()
    view.locator(".compare-answers").evaluate("each => each.scrollTo(each.scrollWidth, 0)")
    page.wait_for_function("document.querySelectorAll('.compare-answer')[1].getBoundingClientRect().left < 60")
    button.tap()
    expect(view.get_by_label("Answer in column B").get_by_role("button", name="Use this answer")).to_be_in_viewport()
    small = [each.bounding_box() for each in view.locator("button:visible").all()]
    assert all(each and each["height"] >= 44 for each in small), json.dumps(small)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()


def test_a_base_and_its_own_adapter_are_opened_apart_with_one_button(context: BrowserContext) -> None:
    engine = ScriptedSwitch()
    engine.settings = ModelSettings(base="a-base", adapter="an-adapter")
    with serving_chat(scripted_chat(engine)) as url:
        page = opened_at(context, url)
        view = open_compare(page)
        expect(view).to_contain_text("The base alone cannot answer here")
        expect(view.get_by_label("Model").first.locator("option")).to_have_text(["scripted-adapter"])
        view.get_by_label("Question").fill("Still here?")
        view.get_by_role("button", name="Open base and adapter apart now").click()
        expect(view.get_by_label("Model").first.locator("option")).to_have_text(["a-base (no adapter)", "scripted-adapter"])
        expect(view.get_by_label("Question")).to_have_value("Still here?")
        assert engine.settings.adapters == (("scripted-adapter", "an-adapter"),)
        view.get_by_role("button", name="Compare", exact=True).click()
        expect(view.get_by_role("button", name="A is the best")).to_be_visible()
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_the_form_and_in_the_answers(context: BrowserContext, compared: Compared, scheme: str) -> None:
    view = open_compare(page := opened_at(context, compared.url, (390, 844), color_scheme=scheme))
    assert findings(page, scheme) == []
    view.get_by_label("Question").fill("What is it?")
    view.get_by_role("button", name="Compare", exact=True).click()
    view.get_by_role("button", name="A is the best").click()
    expect(view).to_contain_text("Your vote is saved.")
    assert findings(page, scheme) == []
