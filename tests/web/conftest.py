"""A browser and a served page, for the tests that drive the one with the other."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, expect

from tests.fakes import ScriptedEngine
from tests.web import browsers
from tests.web.driving import leave, opened
from tests.web.serving import Served, serving

STORAGE = "local_storage,indexeddb,service_workers,cache_storage,file_systems"

expect.set_options(timeout=60_000)  # ends a hang, and judges no speed


@pytest.fixture
def browser() -> Browser:
    return browsers.plain()


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
def context() -> Iterator[BrowserContext]:
    """A browser with empty storage, in which every request must go to the page's own origin."""
    person = browsers.person()
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
