"""The Model panel in a real browser."""

from __future__ import annotations

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from qlora_chat.models import ModelError
from qlora_chat.settings import ServeSettings
from tests.fakes import ScriptedSwitch
from tests.web.driving import answers, opened, ready, say, settled
from tests.web.serving import serving

pytestmark = pytest.mark.browser


def test_the_name_of_the_model_opens_its_panel_and_esc_closes_it(page: Page) -> None:
    expect(page.locator("#welcome")).to_contain_text("scripted-adapter")
    button = page.get_by_role("button", name="scripted", exact=True)
    button.click()
    panel = page.get_by_role("region", name="Model")
    expect(panel).to_contain_text("scripted-base")
    expect(panel).to_contain_text("The adapter was merged into the base, in float32.")
    page.get_by_role("button", name="Settings", exact=True).click()
    expect(panel).to_be_hidden()  # there is room for one of the two beside the chat
    button.press("Enter")
    page.get_by_role("button", name="Close model").press("Enter")
    expect(panel).to_be_hidden()
    expect(button).to_be_focused()


def test_the_panel_covers_a_phone_until_esc(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.keyboard.press("Escape")  # the list of conversations, which was open beside the chat
    page.get_by_role("button", name="scripted", exact=True).click()
    expect(page.get_by_role("region", name="Model")).to_contain_text("Speed")
    page.keyboard.press("Escape")
    expect(page.get_by_role("region", name="Model")).to_be_hidden()


def choose(page: Page, name: str, value: str) -> None:
    field = page.locator(f"#{name} input")
    field.fill(value)
    field.press("Enter")


def test_the_model_is_switched_and_the_conversation_goes_on(context: BrowserContext) -> None:
    engine = ScriptedSwitch()
    with serving(engine) as server:
        page = opened(context, server)
        say(page, "Hello")
        settled(page)
        page.locator("#open-model").click()
        choose(page, "switch-base", "smollm2")
        page.get_by_role("button", name="Switch", exact=True).click()
        expect(page.locator("#switch-report")).to_contain_text("The conversation goes on with this model.")
        expect(page.locator("#open-model")).to_have_text("smollm2")
        assert page.request.get(f"{server.url}/v1/models").json()["data"][0]["id"] == "smollm2"
        say(page, "Go on")
        settled(page, 2)
        assert answers(page) == ["This is a scripted answer."] * 2
        assert "Hello" in engine.streams[-1].prompt.text
        expect(page.locator("#switch-report")).not_to_contain_text("Error")
        engine.switch_fails = ModelError("there is no such model")
        choose(page, "switch-base", "demo")
        page.get_by_role("button", name="Switch", exact=True).click()
        expect(page.locator("#switch-report").get_by_role("alert")).to_have_text("there is no such model")
        page.reload()
        expect(page.locator("#open-model")).to_have_text("smollm2")
        page.locator("#open-model").click()
        expect(page.locator("#switch-base input")).to_have_value("smollm2")
        page.close()


@pytest.mark.parametrize("allowed", [False, True])
def test_a_page_with_a_password_shows_the_model_and_switches_it_where_that_is_allowed(
    context: BrowserContext, allowed: bool
) -> None:
    settings = ServeSettings(token="a long password", page_operator=allowed)
    with serving(ScriptedSwitch(), settings) as server:
        page = context.new_page()
        page.goto(server.url)
        page.fill("input[type=password]", "a long password")
        page.keyboard.press("Enter")
        ready(page)
        page.locator("#open-model").click()
        expect(page.get_by_role("region", name="Model")).to_contain_text("scripted-base")
        expect(page.locator("#switch-start")).to_have_count(int(allowed))
        page.close()
