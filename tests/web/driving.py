"""What a person does on the page, as functions."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from playwright.sync_api import BrowserContext, Page, expect

from tests.fakes import ScriptedEngine, ScriptedStream
from tests.web.browsers import SIZE
from tests.web.serving import Served

LONG = " ".join(f"w{index}" for index in range(10_000))
EMPTIED = "about:blank#emptied"
_PLAIN = WeakSet[Page]()
"""Tabs of `opened_at`, which have nothing of their own, as another language, that would outlast the page in them."""
STEP = 0.01
"""Seconds a token in answers that are interrupted."""


def opened(context: BrowserContext, server: Served) -> Page:
    return opened_at(context, server.url)


def opened_at(context: BrowserContext, url: str, size: tuple[int, int] | None = None, **media: Any) -> Page:
    """A page in a window of that size, for a person of those tastes (of Playwright's `emulate_media`)."""
    page = next((each for each in context.pages if each.url == EMPTIED), None) or context.new_page()
    if size:
        page.set_viewport_size({"width": size[0], "height": size[1]})
    page.emulate_media(**media)
    page.goto(url)
    _PLAIN.add(page)
    ready(page)
    return page


def leave(pages: list[Page]) -> None:
    """Close tabs, but for one that is as good as new once it is emptied: opening a tab takes a quarter of a page's time."""
    spare = next((each for each in pages if each in _PLAIN and each.url.startswith("http")), None)
    for page in pages:
        if page is not spare:
            page.close()
    if spare:
        spare.unroute_all(behavior="ignoreErrors")
        spare.evaluate("sessionStorage.clear()")
        spare.goto(EMPTIED)
        spare.set_viewport_size({"width": SIZE[0], "height": SIZE[1]})
        spare.emulate_media(color_scheme="light", reduced_motion="no-preference")


def ready(page: Page) -> None:
    """Wait until the page has been given its conversation."""
    expect(page.locator("#box textarea")).to_be_visible()
    page.wait_for_function("sessionStorage.getItem('qlora-chat.conversation')")


def say(page: Page, text: str) -> None:
    page.fill("#box textarea", text)
    page.press("#box textarea", "Enter")


def settled(page: Page, count: int = 1) -> None:
    """Wait until the page shows `count` answers or more, each as it ended."""
    page.wait_for_function(
        "count => !document.body.matches('.answering')"
        " && document.querySelectorAll('#messages .answer:not(.live)').length >= count",
        arg=count,
    )


def answers(page: Page) -> list[str]:
    return [text.strip() for text in page.locator("#messages .answer .body").all_inner_texts()]


def wait_for(page: Page, condition: Callable[[], object], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        page.wait_for_timeout(10)


def begin_long_answer(page: Page, engine: ScriptedEngine, question: str = "go on") -> ScriptedStream:
    engine.answer, engine.delay = LONG, STEP
    say(page, question)
    expect(page.locator("#messages .answer")).to_contain_text("w5")
    return engine.streams[-1]


def open_options(page: Page) -> None:
    """Open the drawer with the sliders."""
    page.get_by_role("button", name="Settings", exact=True).click()
    expect(page.locator("#temperature")).to_be_visible()


def set_slider(page: Page, name: str, value: str) -> None:
    field = page.locator(f"#{name}")
    field.fill(value)
    field.press("Tab")
    expect(field).to_have_value(value)
