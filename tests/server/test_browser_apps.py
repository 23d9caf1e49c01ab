"""Browser apps of other origins: the named ones use the API, nobody else does, and the page is for none of them."""

from __future__ import annotations

import pytest

from qlora_chat.settings import ServeSettings, SettingsError
from tests.server.test_access_control import JOIN, TOKEN, ask

APP = "http://localhost:3000"
ALLOWED = ServeSettings(allowed_origins=(APP, "https://app.example"))
CHAT = "/v1/chat/completions"


def test_a_named_app_asks_first_and_then_sends() -> None:
    asked = ask(
        "OPTIONS", CHAT, ALLOWED, origin=APP, access_control_request_method="POST",
        access_control_request_headers="authorization,content-type,x-stainless-lang",
    )  # fmt: skip
    assert asked.is_success
    assert asked.headers["access-control-allow-origin"] == APP
    assert asked.headers["access-control-allow-headers"] == "authorization,content-type,x-stainless-lang"
    assert "POST" in asked.headers["access-control-allow-methods"]
    sent = ask("POST", CHAT, ALLOWED, content=b"{}", origin=APP, sec_fetch_site="cross-site")
    assert sent.status_code == 200
    assert sent.headers["access-control-allow-origin"] == APP
    assert "Origin" in sent.headers["vary"]


def test_an_app_reads_errors_too() -> None:
    guarded = ServeSettings(token=TOKEN, allowed_origins=(APP,))
    refused = ask("POST", CHAT, guarded, content=b"{}", origin=APP, sec_fetch_site="cross-site")
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, APP)
    assert ask("OPTIONS", CHAT, guarded, origin=APP, access_control_request_method="POST").is_success
    opened = ask("POST", CHAT, guarded, content=b"{}", origin=APP, authorization=f"Bearer {TOKEN}")
    assert opened.status_code == 200


@pytest.mark.parametrize(
    "origin",
    ["http://localhost:3001", "https://localhost:3000", "http://localhost:3000.evil.example", "null", "*", "http://evil"],
)
@pytest.mark.parametrize("method", ["POST", "OPTIONS"])
def test_every_other_origin_is_refused_with_what_can_be_done(origin: str, method: str) -> None:
    refused = ask(method, CHAT, ALLOWED, content=b"{}", origin=origin, access_control_request_method="POST")
    assert refused.status_code == 403
    said = "open the page over http" if origin == "null" else "--allow-origin"
    assert said in refused.json()["error"]["message"]
    assert "access-control-allow-origin" not in refused.headers


def test_the_page_is_for_no_other_origin() -> None:
    for method, path in (("POST", JOIN), ("GET", "/config"), ("GET", "/"), ("OPTIONS", JOIN)):
        refused = ask(method, path, ALLOWED, origin=APP)
        assert refused.status_code == 403
        assert "access-control-allow-origin" not in refused.headers


def test_a_foreign_host_is_refused_for_a_named_app_too() -> None:
    assert ask("POST", CHAT, ALLOWED, content=b"{}", origin=APP, host="evil.example").status_code == 421


@pytest.mark.parametrize(
    "origin", ["*", "null", "localhost:3000", "http://a/", "http://A", "https://a:443", "http://a/b", "", "a"]
)
def test_only_exact_origins_can_be_named(origin: str) -> None:
    with pytest.raises(SettingsError, match="--allow-origin"):
        ServeSettings(allowed_origins=(origin,))


@pytest.mark.parametrize("origin", ["app://obsidian.md", "https://a.example:8443", "http://[::1]:3000"])
def test_apps_and_ports_have_origins(origin: str) -> None:
    assert ServeSettings(allowed_origins=(origin,)).allowed_origins == (origin,)
