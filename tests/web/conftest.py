"""A browser and a served page, for the tests that drive the one with the other."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, Request, expect, sync_playwright

from tests.fakes import ScriptedEngine
from tests.web.driving import opened
from tests.web.serving import Served, serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run",
)  # fmt: skip

expect.set_options(timeout=60_000)  # ends a hang, and judges no speed


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    """Playwright, for as long as one file needs it: it keeps an event loop running that other tests must not meet."""
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    assert CHROMIUM, "Chromium is missing; `make test` installs it"
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with serving(ScriptedEngine()) as served:
        yield served


@pytest.fixture
def engine(server: Served) -> ScriptedEngine:
    """The engine behind the page, as new."""
    return server.as_new().engine


@pytest.fixture
def context(browser: Browser, server: Served) -> Iterator[BrowserContext]:
    """A browser with empty storage, in which every request must go to the page's own origin."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(60_000)
    elsewhere: list[str] = []

    def note(request: Request) -> None:
        if not request.url.startswith((server.url + "/", "data:", "blob:")):
            elsewhere.append(request.url)

    context.on("request", note)
    yield context
    context.close()
    assert elsewhere == []


@pytest.fixture
def page(context: BrowserContext, server: Served, engine: ScriptedEngine) -> Page:
    return opened(context, server)
