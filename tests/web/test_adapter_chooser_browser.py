"""Several adapters on the page, in a real browser: one is chosen for a conversation, and kept with its turns."""

from __future__ import annotations

from dataclasses import replace

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.fakes import ScriptedEngine, scripted_chat
from tests.web.driving import ready, say, settled
from tests.web.serving import serving_chat

pytestmark = pytest.mark.browser


@pytest.fixture
def engine() -> ScriptedEngine:
    engine = ScriptedEngine("A scripted answer.")
    engine.info = replace(engine.info, adapter=None, adapters=("guanaco", "pirate"))
    return engine


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()


def choose(page: Page, name: str) -> None:
    page.click("#adapter input")
    page.get_by_role("option", name=name, exact=True).click()
    expect(page.locator("#adapter input")).to_have_value(name)


def ask(page: Page, text: str, answers: int) -> None:
    say(page, text)
    settled(page, answers)


def test_an_adapter_is_chosen_for_a_conversation_and_kept_with_its_turns(page: Page, engine: ScriptedEngine) -> None:
    chat = scripted_chat(engine)
    with serving_chat(chat, history_on=True) as url:
        page.goto(url)
        ready(page)
        expect(page.locator("#adapter input")).to_have_value("scripted")
        choose(page, "pirate")
        ask(page, "Who are you?", 1)
        page.reload()
        ready(page)
        expect(page.locator("#adapter input")).to_have_value("pirate")
        ask(page, "And now?", 2)
        assert engine.adapters_asked == ["pirate", "pirate"]
        page.click("#new")
        expect(page.locator("#messages .answer")).to_have_count(0)
        choose(page, "scripted")
        ask(page, "Plain?", 1)
        assert engine.adapters_asked[-1] is None, "the model's own name is the model without adapters"

        kept = [chat.history.read(each.id) for each in chat.history.list()]
        used = [[turn.details["model"]["adapter"] for turn in each.turns if turn.details] for each in kept if each]
        assert used == [[None], ["pirate", "pirate"]]
        page.locator("[data-chat] .chat-open").nth(1).click()
        expect(page.locator("#messages .answer")).to_have_count(2)
        expect(page.locator("#adapter input")).to_have_value("pirate")


def test_one_that_was_unloaded_is_said_so_and_is_gone_from_the_next_page(page: Page, engine: ScriptedEngine) -> None:
    with serving_chat(scripted_chat(engine)) as url:
        page.goto(url)
        ready(page)
        choose(page, "pirate")
        engine.refusal = ValueError("adapter 'pirate' is not loaded; loaded: guanaco")
        say(page, "Who are you?")
        expect(page.locator("#notice")).to_contain_text("adapter 'pirate' is not loaded; loaded: guanaco")
        engine.refusal, engine.info = None, replace(engine.info, adapters=("guanaco",))
        page.reload()
        ready(page)
        expect(page.locator("#adapter input")).to_have_value("scripted")
        page.click("#adapter input")
        expect(page.locator("[role=option]")).to_have_count(2)


def test_with_one_model_there_is_nothing_to_choose(page: Page) -> None:
    with serving_chat(scripted_chat()) as url:
        page.goto(url)
        ready(page)
        expect(page.locator("#adapter")).to_have_count(0)
