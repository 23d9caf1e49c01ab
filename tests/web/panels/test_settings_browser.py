"""The settings drawer: presets, a sentence for each control, values that cannot be used, and what the browser remembers."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.fakes import ScriptedEngine
from tests.web.driving import begin_long_answer, open_options, opened, say, set_slider, settled, wait_for
from tests.web.serving import Served

pytestmark = pytest.mark.browser
IN_USE = re.compile(r"0\.7 stays in use\.")


@pytest.fixture(name="page")
def settings_page(context: BrowserContext, server: Served, engine: ScriptedEngine) -> Page:
    page = opened(context, server)
    open_options(page)
    return page


def preset(page: Page, label: str) -> None:
    page.get_by_role("button", name=label, exact=True).click()


def test_a_preset_sets_what_the_next_answer_is_drawn_with(page: Page, engine: ScriptedEngine) -> None:
    preset(page, "Creative")
    expect(page.locator("#temperature")).to_have_value("1.15")
    expect(page.locator("#min_p")).to_have_value("0.05")
    expect(page.get_by_role("button", name="Creative", exact=True)).to_have_attribute("aria-pressed", "true")
    set_slider(page, "seed", "9223372036854775807")
    page.fill("#stop_texts", "END\n\\n\\n")
    say(page, "go")
    settled(page)
    stream = engine.streams[-1]
    assert (stream.sampling.temperature, stream.sampling.min_p, stream.sampling.seed) == (1.15, 0.05, 2**63 - 1)
    assert stream.stops.texts[-2:] == ("END", "\n\n")
    set_slider(page, "temperature", "1.2")
    expect(page.get_by_role("button", name="Creative", exact=True)).to_have_attribute("aria-pressed", "false")


def test_what_cannot_be_used_is_said_next_to_the_field_and_the_last_value_stays(page: Page, engine: ScriptedEngine) -> None:
    for typed in ("", "9", "-1", "much", "1e999"):
        page.fill("#temperature", "0.7")
        expect(page.locator("#temperature-problem")).to_be_empty()
        page.fill("#temperature", typed)
        expect(page.locator("#temperature-problem")).to_have_text(IN_USE)
        assert page.locator("#temperature").get_attribute("aria-invalid") == "true"
    say(page, "go")
    settled(page)
    assert engine.streams[-1].sampling.temperature == 0.7
    expect(page.locator("#temperature")).to_have_value("0.7")
    set_slider(page, "temperature", "0.9")
    expect(page.locator("#temperature-problem")).to_be_empty()


def test_a_seed_is_exact_to_its_last_digit(page: Page, engine: ScriptedEngine) -> None:
    page.fill("#seed", "9223372036854775807")
    page.fill("#seed", "9223372036854775808")
    expect(page.locator("#seed-problem")).to_contain_text("9223372036854775807 stays in use.")
    page.fill("#seed", "")
    page.fill("#seed", "x")
    expect(page.locator("#seed-problem")).to_contain_text("A seed is drawn for each answer.")
    page.fill("#stop_texts", "END")
    page.fill("#stop_texts", "x" * 257)
    expect(page.locator("#stop_texts-problem")).to_contain_text("at most 256 characters")
    say(page, "go")
    settled(page)
    assert engine.streams[-1].stops.texts[-1] == "END"


def test_every_control_says_when_to_move_it_by_keyboard_too(page: Page) -> None:
    for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens", "seed", "stop_texts"):
        field = page.locator(f"#{name}")
        advice = page.locator(f"#{(field.get_attribute('aria-describedby') or '').split()[0]}")
        expect(advice).to_have_text(re.compile(r"\w.*\."))
    slider = page.get_by_role("slider", name="Temperature, slider")
    slider.focus()
    slider.press("ArrowRight")
    expect(page.locator("#temperature")).to_have_value("0.75")


def test_a_slider_acts_during_an_answer(page: Page, engine: ScriptedEngine) -> None:
    stream = begin_long_answer(page, engine)
    page.get_by_role("slider", name="Temperature, slider").fill("1.5")
    wait_for(page, lambda: stream.sampling.temperature == 1.5)
    page.locator("#stop").click()


def test_the_browser_remembers_settings_and_system_texts(
    page: Page, context: BrowserContext, server: Served, engine: ScriptedEngine
) -> None:
    preset(page, "Precise")
    page.fill("#system textarea", "Speak like a pirate.")
    page.get_by_label("Name of the system text").fill("Pirate")
    page.get_by_role("button", name="Save", exact=True).click()
    again = opened(context, server)
    open_options(again)
    expect(again.locator("#temperature")).to_have_value("0.2")
    again.get_by_label("Saved system texts").select_option("Pirate")
    expect(again.locator("#system textarea")).to_have_value("Speak like a pirate.")
    say(again, "go")
    settled(again)
    assert engine.streams[-1].prompt.text.startswith("Speak like a pirate.")
    again.get_by_role("button", name="Delete", exact=True).click()
    expect(again.get_by_label("Saved system texts")).to_be_disabled()


def test_nonsense_in_the_browser_s_storage_is_no_setting(context: BrowserContext, server: Served) -> None:
    page = opened(context, server)
    page.evaluate('localStorage.setItem(\'qlora-chat.sampling\', \'{"temperature": "hot", "top_k": 7, "stop_texts": 5}\')')
    page.evaluate("localStorage.setItem('qlora-chat.systems', '[1, 2')")
    page.reload()
    open_options(page)
    expect(page.locator("#temperature")).to_have_value("0.7")
    expect(page.locator("#top_k")).to_have_value("7")
