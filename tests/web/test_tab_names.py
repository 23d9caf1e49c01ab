"""Names of tabs: each is its first browser's, and made-up ones push out nobody else's."""

from __future__ import annotations

import pytest

from qlora_chat.web import tab_names
from qlora_chat.web.tab_names import TabNames, browser_of, new_browser


def names_for(most: int = 100) -> tuple[TabNames, list[str]]:
    forgotten: list[str] = []
    return TabNames(lambda name: name == "busy", forgotten.append, most), forgotten


def test_a_tab_is_the_browsers_that_opened_it() -> None:
    names, _ = names_for()
    assert names.claim("tab", "alice")
    assert names.claim("tab", "alice")
    assert not names.claim("tab", "mallory")
    assert not names.claim("tab", "")


def test_a_browser_with_too_many_tabs_loses_its_oldest_idle_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tab_names, "MOST_NAMES_OF_A_BROWSER", 2)
    names, forgotten = names_for()
    assert names.claim("hers", "alice")
    assert all(names.claim(each, "mallory") for each in ("busy", "one", "two", "three"))
    assert forgotten == ["one", "two"]
    assert names.claim("hers", "alice")


def test_made_up_names_push_out_names_of_the_same_browser() -> None:
    names, forgotten = names_for(most=3)
    assert names.claim("hers", "alice")
    assert all(names.claim(f"made-up {each}", "mallory") for each in range(10))
    assert "hers" not in forgotten
    assert len(forgotten) == 8


def test_a_browser_is_known_by_the_cookie_that_it_was_sent() -> None:
    def scope(cookie: str = "", scheme: str = "http") -> dict[str, object]:
        return {"type": "http", "scheme": scheme, "headers": [(b"cookie", cookie.encode())]}

    assert browser_of(scope()) == browser_of(scope("qlora_chat_browser=short")) == ""
    for scheme in ("http", "https"):
        cookie = new_browser(scope(scheme=scheme))
        assert browser_of(scope(cookie.split(";")[0], scheme)) in cookie
        assert len(browser_of(scope(cookie.split(";")[0], scheme))) == tab_names.ID_CHARACTERS
        assert ("; Secure" in cookie) == (scheme == "https")
        assert "HttpOnly" in cookie
