"""The browsers that all tests of the page share, from the first of them to the first test of another kind.

Playwright keeps an event loop running that other tests must not meet; to start it and a browser takes more than most tests.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack
from functools import cache

from playwright.sync_api import Browser, BrowserContext, Playwright, sync_playwright

SIZE = (1280, 900)
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
"""The first of them does the same with a fifth less work: it has no window to draw."""
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run", "--process-per-site",  # one process goes from page to page, and keeps its compiled scripts
)  # fmt: skip

_open = ExitStack()


@cache
def plain() -> Browser:
    """A browser for contexts of a test's own: another language, a screen that is touched. Each compiles all scripts anew."""
    browser = _playwright().chromium.launch(executable_path=_program(), args=list(FLAGS))
    _open.callback(browser.close)
    return browser


@cache
def person() -> BrowserContext:
    """A browser whose profile keeps compiled scripts between tests, which halves a page's time. Its first tab stays blank."""
    profile = _open.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
    person = _playwright().chromium.launch_persistent_context(
        profile, executable_path=_program(), args=list(FLAGS), viewport={"width": SIZE[0], "height": SIZE[1]}
    )
    person.set_default_timeout(60_000)
    _open.callback(person.close)
    return person


def close() -> None:
    """End what is open; it is opened again if it is needed again."""
    _open.close()
    for each in (plain, person, _playwright):
        each.cache_clear()


@cache
def _playwright() -> Playwright:
    return _open.enter_context(sync_playwright())


def _program() -> str:
    assert CHROMIUM, "Chromium is missing; `make test` installs it"
    return CHROMIUM
