"""The token view over the real demo: probabilities, alternatives by keyboard, and an answer that branches at a token."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from qlora_chat.chat import Chat
from qlora_chat.engines.local import LocalEngine
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.prompt import DEFAULT_FORMAT
from tests.fakes import ScriptedEngine
from tests.web.driving import open_options, opened_at, say, set_slider, settled
from tests.web.serving import serving_chat

pytestmark = pytest.mark.browser


@pytest.fixture
def real(context: BrowserContext, shared_engine: LocalEngine) -> Iterator[Page]:
    """A page over the demo model, which answers greedily."""
    with serving_chat(Chat(shared_engine, DEFAULT_FORMAT, MemoryHistory())) as url:
        page = opened_at(context, url)
        open_options(page)
        set_slider(page, "temperature", "0")
        yield page
        page.close()


def open_tokens(page: Page) -> None:
    page.locator("#messages .answer").get_by_role("button", name="Details").click()
    page.get_by_role("button", name="Token probabilities", exact=True).click()


def test_an_alternative_is_chosen_by_keyboard_and_the_answer_goes_on_from_it(real: Page) -> None:
    say(real, "What is the capital of France?")
    settled(real)
    open_tokens(real)
    tokens = real.locator(".token-view .token")
    expect(tokens.first).to_be_focused()
    assert "".join(tokens.all_text_contents()).strip() == "The capital of France is Paris."
    real.keyboard.press("ArrowRight")
    expect(tokens.nth(1)).to_be_focused()
    expect(real.locator(".alternatives")).to_contain_text("Go on from another token instead")
    alternative = real.locator(".alternative:enabled").first
    word = alternative.locator("code").inner_text().replace("␣", " ")
    alternative.press("Enter")
    expect(real.locator("#messages .answer .count")).to_have_text("2/2")
    settled(real)
    expect(real.locator("#messages .answer .body")).to_contain_text(re.compile(f"^The{re.escape(word)}"))


def test_an_answer_without_token_ids_says_so(page: Page, engine: ScriptedEngine) -> None:
    say(page, "hello")
    settled(page)
    open_tokens(page)
    expect(page.locator(".token-view")).to_contain_text("token ids of this answer are not known")
    page.keyboard.press("Escape")
    expect(page.locator(".token-view")).to_be_hidden()
