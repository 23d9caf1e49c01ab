"""The page in other languages than English, in a real browser."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.fakes import ScriptedEngine
from tests.web.driving import LONG, ready, say, settled
from tests.web.serving import Served
from tests.web.test_languages import texts_of

pytestmark = [pytest.mark.browser]

TEXTS = """() => {
    const found = new Set();
    const skipped = ".question .body, .answer .body, .examples, .off-screen, textarea, script, style, h1, code, #language";
    const names = ["placeholder", "aria-label", "title", "data-empty"];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT | NodeFilter.SHOW_ELEMENT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
        if (node.nodeType === Node.TEXT_NODE) {
            if (!node.parentElement.closest(skipped)) found.add(node.data);
        } else for (const name of names) found.add(node.getAttribute(name) ?? "");
    }
    return [...found];
}"""
"""What the page says, besides messages and example questions."""
NAMES = re.compile(
    "A scripted engine: it says what the test wrote|scripted(-base|-adapter)?|QLoRA Chat|JSON|Markdown|GiB|fp32|cpu|hello"
)
"""Words that have no translation."""


def english_on(page: Page) -> set[str]:
    return {text.strip() for text in page.evaluate(TEXTS) if re.search("[A-Za-z]{3}", NAMES.sub("", text))}


@pytest.fixture
def marked(context: BrowserContext, server: Served) -> Page:
    """The page in a language that has only one letter."""
    page = context.new_page()
    entries = {key: re.sub(r"({\w+})|[A-Za-z]", lambda found: found[1] or "ж", key) for key in texts_of("de")}
    page.route("**/languages/de.json", lambda route: route.fulfill(json=entries))
    return in_language(page, server, "de-DE")


def in_language(page: Page, server: Served, locale: str) -> Page:
    """The page for a person whose browser speaks that language."""
    devtools = page.context.new_cdp_session(page)
    agent = {"userAgent": page.evaluate("navigator.userAgent"), "acceptLanguage": locale}
    devtools.send("Emulation.setUserAgentOverride", agent)
    devtools.send("Emulation.setLocaleOverride", {"locale": locale})
    page.goto(server.url)
    ready(page)
    return page


def test_nothing_on_the_page_is_left_in_english(marked: Page, engine: ScriptedEngine) -> None:
    page = marked
    expect(page.locator("#send")).to_have_text("жжжж")
    page.locator("[aria-controls=settings]").click()
    assert english_on(page) == set()
    say(page, "hello")
    settled(page)
    page.locator("[data-action=details]").click()
    page.locator("[data-action=up]").click()
    expect(page.locator(".feedback")).to_be_visible()
    page.locator(".context-bar").click()
    page.locator(".chat-menu-button").click()
    page.fill("#temperature", "9")
    assert english_on(page) == set()


def test_a_language_is_chosen_over_the_browsers_and_remembered(context: BrowserContext, server: Served) -> None:
    page = in_language(context.new_page(), server, "de-AT")
    expect(page.locator("#send")).to_have_text("Senden")
    expect(page.locator("html")).to_have_attribute("lang", "de")
    page.get_by_role("button", name="Einstellungen", exact=True).click()
    page.get_by_label("Sprache").select_option("ja")
    expect(page.locator("#send")).to_have_text("送信")
    page.reload()
    expect(page.locator("#send")).to_have_text("送信")
    expect(page.locator("html")).to_have_attribute("lang", "ja")
    page.get_by_role("button", name="設定", exact=True).click()
    page.get_by_label("言語").select_option("en")
    expect(page.locator("#send")).to_have_text("Send")
    expect(page.locator("html")).to_have_attribute("lang", "en")


@pytest.mark.parametrize(
    ("locale", "send", "lang"),
    [("fr-CA", "Envoyer", "fr"), ("es-MX", "Enviar", "es"), ("zh-CN", "发送", "zh-Hans"), ("pt-BR", "Send", "en")],
)
def test_the_page_follows_the_browsers_language(
    context: BrowserContext, server: Served, locale: str, send: str, lang: str
) -> None:
    page = in_language(context.new_page(), server, locale)
    expect(page.locator("#send")).to_have_text(send)
    expect(page.locator("html")).to_have_attribute("lang", lang)


def test_numbers_and_sentences_of_the_server_follow_the_language(
    context: BrowserContext, server: Served, engine: ScriptedEngine
) -> None:
    page = in_language(context.new_page(), server, "de-DE")
    page.get_by_role("button", name="Einstellungen", exact=True).click()
    page.get_by_label("Temperatur", exact=True).fill("0,25")
    say(page, "los")
    settled(page)
    expect(page.locator(".context-bar")).to_contain_text("von 4.096")
    page.get_by_role("button", name="Details").click()
    expect(page.locator("#messages .details")).to_contain_text("Temperatur0,25")
    say(page, LONG)
    expect(page.locator("#notice")).to_contain_text(
        "Diese Nachricht ist zu lang: Mit dem System-Prompt braucht sie mindestens 3."
    )


def test_what_a_person_writes_is_not_translated(context: BrowserContext, server: Served, engine: ScriptedEngine) -> None:
    page = in_language(context.new_page(), server, "de-DE")
    engine.answer = "Settings"
    say(page, "Send")
    settled(page)
    expect(page.locator("#messages .question .body")).to_have_text("Send")
    expect(page.locator("#messages .answer .body")).to_have_text("Settings")
    expect(page.locator("#chat-list .chat-title").first).to_have_text("Send")
    expect(page.locator("#chat-list .chat-title").first).to_have_attribute("title", "Send")
    expect(page.locator(".chat-menu-button").first).to_have_attribute("aria-label", "Menü von Send")
