"""The Model panel in a real browser."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

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
