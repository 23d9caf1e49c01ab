"""A browser and a served page, for the tests that drive the one with the other."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, Request, expect, sync_playwright

from tests.fakes import ScriptedEngine
from tests.web.driving import SIZE, leave, opened
from tests.web.serving import Served, serving

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
"""The first of them does the same with a fifth less work: it has no window to draw."""
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run",
)  # fmt: skip

STORAGE = "local_storage,indexeddb,service_workers,cache_storage,file_systems"

expect.set_options(timeout=60_000)  # ends a hang, and judges no speed


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    """Playwright, for as long as one file needs it: it keeps an event loop running that other tests must not meet."""
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    """For contexts of a test's own: another language, a screen that is touched. Each compiles all scripts of the page anew."""
    assert CHROMIUM, "Chromium is missing; `make test` installs it"
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def person(playwright: Playwright, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserContext]:
    """A browser whose profile keeps compiled scripts between tests, which halves a page's time. Its first tab stays blank."""
    assert CHROMIUM, "Chromium is missing; `make test` installs it"
    profile = tmp_path_factory.getbasetemp() / "profile"
    person = playwright.chromium.launch_persistent_context(
        profile, executable_path=CHROMIUM, args=list(FLAGS), viewport={"width": SIZE[0], "height": SIZE[1]}
    )
    person.set_default_timeout(60_000)
    yield person
    person.close()


@pytest.fixture(scope="session")
def scripted_server() -> Iterator[Served]:
    with serving(ScriptedEngine()) as served:
        yield served


@pytest.fixture
def server(scripted_server: Served) -> Served:
    """The page over a scripted engine, as new."""
    return scripted_server.as_new()


@pytest.fixture
def engine(server: Served) -> ScriptedEngine:
    return server.engine


@pytest.fixture
def context(person: BrowserContext) -> Iterator[BrowserContext]:
    """A browser with empty storage, in which every request must go to the page's own origin."""
    origins: set[str] = set()

    def note(request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme not in ("data", "blob"):
            origins.add(f"{address.scheme}://{address.netloc}")

    person.on("request", note)
    yield person
    blank, *opened = person.pages
    leave(opened)
    person.remove_listener("request", note)
    person.clear_cookies()
    person.clear_permissions()
    devtools = person.new_cdp_session(blank)
    for origin in origins:
        devtools.send("Storage.clearDataForOrigin", {"origin": origin, "storageTypes": STORAGE})
    devtools.detach()
    assert len(origins) <= 1, "the page asked another origin"


@pytest.fixture
def page(context: BrowserContext, server: Served, engine: ScriptedEngine) -> Page:
    return opened(context, server)
