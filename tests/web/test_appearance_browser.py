"""The theme of the page, its manifest, and long questions, in a real browser."""

from __future__ import annotations

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.fakes import ScriptedEngine
from tests.web.driving import opened, ready, say, settled
from tests.web.serving import Served

pytestmark = [pytest.mark.browser]

IS_DARK = "document.body.classList.contains('dark')"


def test_a_theme_is_chosen_over_the_systems_and_remembered(browser: Browser, server: Served) -> None:
    context = browser.new_context(color_scheme="dark", viewport={"width": 1280, "height": 900})
    page = opened(context, server)
    page.wait_for_function(IS_DARK)
    page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_label("Theme").select_option("light")
    page.wait_for_function(f"!{IS_DARK}")
    page.reload()
    ready(page)
    page.wait_for_function(f"!{IS_DARK}")
    page.emulate_media(color_scheme="light")
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(100)
    assert not page.evaluate(IS_DARK), "the system's theme does not come back by itself"
    page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_label("Theme").select_option("system")
    page.wait_for_function(IS_DARK)
    context.close()


def test_the_page_can_be_installed(page: Page, server: Served) -> None:
    address = page.locator("link[rel=manifest][href*='page/static']").get_attribute("href")
    assert address
    manifest = httpx.get(address).json()
    assert manifest["display"] == "standalone"
    icon = httpx.get(httpx.URL(address).join(manifest["icons"][0]["src"]))
    assert icon.headers["content-type"].startswith("image/svg+xml")
    assert str(httpx.URL(address).join(manifest["start_url"])).rstrip("/") == server.url


def test_a_long_question_is_folded_and_copied_whole(page: Page, engine: ScriptedEngine) -> None:
    text = "\n".join(f"line {number}" for number in range(100))
    say(page, text)
    settled(page)
    body = page.locator("#messages .question .body")
    expect(body).not_to_contain_text("line 99", use_inner_text=True)
    page.get_by_role("button", name="Show all 789 characters").click()
    expect(body).to_contain_text("line 99", use_inner_text=True)
    page.get_by_role("button", name="Show less").click()
    expect(body).not_to_contain_text("line 99", use_inner_text=True)
