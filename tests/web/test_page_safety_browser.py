"""The page in a real browser: hostile text, privacy, passwords, phones and keyboards."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from qlora_chat.settings import ServeSettings
from tests.fakes import ScriptedEngine

from .driving import opened, ready, say
from .serving import Served, serving

pytestmark = [pytest.mark.browser]


def test_logging_is_announced_and_can_be_turned_off(browser: Browser) -> None:
    with serving(ScriptedEngine(), logging_on=True) as served:
        page = opened(browser.new_context(), served)
        expect(page.locator("#logging")).to_contain_text("logged by whoever runs it")
        page.uncheck("#logged input")
        page.wait_for_function("(sessionStorage.getItem('qlora-chat.tab') || '').includes('false')")
        page.reload()
        ready(page)
        expect(page.locator("#logged input")).not_to_be_checked()
        page.context.close()


def test_a_page_with_a_password_opens_after_it_is_given(browser: Browser) -> None:
    with serving(ScriptedEngine(), ServeSettings(token="correct horse")) as served:
        page = browser.new_context().new_page()
        page.goto(served.url)
        page.fill("#token", "wrong")
        page.press("#token", "Enter")
        expect(page.get_by_role("alert")).to_have_text("That password is not right.")
        page.fill("#token", "correct horse")
        page.press("#token", "Enter")
        ready(page)
        say(page, "hello")
        expect(page.locator("#chat .bot")).to_contain_text("scripted answer")
        page.context.close()


PAYLOADS = [
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "<svg onload='window.hacked = 1'></svg>",
    "<iframe srcdoc='<script>parent.hacked = 1</script>'></iframe>",
    "<a href='javascript:window.hacked = 1' id=bait>x</a>",
    "[bait](javascript:window.hacked=1)",
    "![x](http://elsewhere.example/x.png)",
    "<img src='http://elsewhere.example/y.png'>",
    "<style>@import 'http://elsewhere.example/z.css'; body { display: none }</style>",
    "<form action='http://elsewhere.example/'><button autofocus>go</button></form>",
    "<details open ontoggle='window.hacked = 1'>x</details>",
    "<math><mtext><table><mglyph><style><img src=x onerror='window.hacked = 1'></style></mglyph></table></mtext></math>",
    "`` ` `` <video><source onerror='window.hacked = 1'></video>",
    "```\n</code></pre><script>window.hacked = 1</script>\n```",
    "$$\\href{javascript:window.hacked=1}{x}$$",
    "<link rel=stylesheet href=http://elsewhere.example/w.css>",
]


def test_no_payload_runs_or_fetches_whether_typed_or_answered(page: Page, engine: ScriptedEngine) -> None:
    for index, payload in enumerate(PAYLOADS):
        engine.answer = f"before {payload} after"
        say(page, payload)
        expect(page.locator("#chat .bot")).to_have_count(index + 1)
        expect(page.locator("#send")).to_be_enabled()
        assert page.locator("#chat .user .message-content").nth(index).inner_text().strip() == payload
    for bait in page.locator("#chat a").all():
        assert not (bait.get_attribute("href") or "").lower().startswith("javascript")
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None
    assert page.locator("#chat .message-content :is(script, iframe, form, style, img, link, video)").count() == 0
    expect(page.locator("#chat")).to_be_visible()


def test_markdown_in_an_answer_is_rendered(page: Page, engine: ScriptedEngine) -> None:
    engine.answer = "Some **bold** words and\n\n```python\nprint('<b>')\n```"
    say(page, "**not bold**")
    expect(page.locator("#chat .bot strong")).to_have_text("bold")
    expect(page.locator("#chat .bot pre")).to_contain_text("print('<b>')")
    expect(page.locator("#chat .user strong")).to_have_count(0)


CONTROLS_WITHOUT_A_NAME = """() => [...document.querySelectorAll('button, input, textarea')]
    .filter(e => e.checkVisibility())
    .filter(e => !(e.labels?.length || e.ariaLabel || e.innerText.trim() || e.title))
    .map(e => e.outerHTML)"""


def test_the_page_fits_a_phone_and_works_by_keyboard(context: BrowserContext, server: Served, engine: ScriptedEngine) -> None:
    page = context.new_page()
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(server.url)
    ready(page)
    say(page, "hello " * 30)
    expect(page.locator("#chat .bot")).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for control in ("#box textarea", "#send", "#clear"):
        assert page.locator(control).bounding_box()["x"] >= 0  # type: ignore[index]
    page.focus("#box textarea")
    reached = set()
    for _ in range(6):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.innerText"))
    assert {"send", "retry", "undo", "clear"} <= reached
    assert page.evaluate(CONTROLS_WITHOUT_A_NAME) == []


def test_the_browser_reports_no_error(context: BrowserContext, server: Served, engine: ScriptedEngine) -> None:
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.goto(server.url)
    ready(page)
    say(page, "hello")
    expect(page.locator("#chat .bot")).to_contain_text("scripted answer")
    page.click("#clear")
    expect(page.locator("#chat .bot")).to_have_count(0)
    assert complaints == []
